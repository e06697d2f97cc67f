import { randomUUID } from 'node:crypto'
import { afterAll, describe, expect, inject, it } from 'vitest'
import { testDatabase } from '../../tests/support/database.ts'
import { withSession } from '../../tests/support/session.ts'
import { connect, type Sql } from './client.ts'
import { type Migration, migrate, readMigrations } from './migrate.ts'

const names = readMigrations().map((migration) => migration.name)
const cleanUps: (() => Promise<unknown>)[] = []

afterAll(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp()
})

/** An empty database, and who connects to it: its owner, or the server's user. */
async function emptyDatabase(owner?: string): Promise<string> {
  const name = `loopless_${randomUUID().replaceAll('-', '')}`
  const serverUrl = inject('serverUrl')
  await withSession(serverUrl, async (sql) => {
    await (owner ? sql`create database ${sql(name)} owner ${sql(owner)}` : sql`create database ${sql(name)}`)
  })
  cleanUps.push(() => withSession(serverUrl, (sql) => sql`drop database ${sql(name)} with (force)`))
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  return url.href
}

/** A role that may log in and nothing else. */
async function plainRole(): Promise<string> {
  const role = `loopless_${randomUUID().replaceAll('-', '')}`
  const serverUrl = inject('serverUrl')
  await withSession(serverUrl, async (sql) => {
    await sql.unsafe(`create role ${role} login password 'secret' nosuperuser nocreatedb nocreaterole`)
  })
  cleanUps.push(() => withSession(serverUrl, (sql) => sql`drop role ${sql(role)}`))
  return role
}

function as(role: string, databaseUrl: string): string {
  const url = new URL(databaseUrl)
  url.username = role
  url.password = 'secret'
  return url.href
}

async function using<Result>(url: string, use: (sql: Sql) => Promise<Result>): Promise<Result> {
  const sql = connect(url)
  try {
    return await use(sql)
  } finally {
    await sql.end()
  }
}

const step = (version: number, text: string): Migration => ({
  version,
  name: `000${version}_step_${version}`,
  text,
})
const first = step(1, 'create table loopless.one (id int)')
const second = step(2, 'create table loopless.two (id int)')

describe('migrate', () => {
  it('applies every migration in order to an empty database, and nothing the second time', async () => {
    const url = await emptyDatabase()
    expect(await using(url, (sql) => migrate(sql))).toEqual(names)
    expect(await using(url, (sql) => migrate(sql))).toEqual([])
    const history = await using(
      url,
      (sql) =>
        sql`select version, name, length(checksum) as length from loopless.schema_migration order by 1`,
    )
    expect(history).toEqual(names.map((name, index) => ({ version: index + 1, name, length: 64 })))
  })

  it('applies each migration once when ten runs start together', async () => {
    const url = await emptyDatabase()
    const runs = await Promise.all(Array.from({ length: 10 }, () => using(url, (sql) => migrate(sql))))
    expect(runs.flat().sort()).toEqual(names)
  })

  it('lets concurrent runs wait for each other where transactions are serializable by default', async () => {
    const url = await emptyDatabase()
    await withSession(url, (sql) =>
      sql.unsafe(
        `alter database "${new URL(url).pathname.slice(1)}" set default_transaction_isolation = serializable`,
      ),
    )
    const runs = await Promise.all(Array.from({ length: 5 }, () => using(url, (sql) => migrate(sql))))
    expect(runs.flat().sort()).toEqual(names)
  })

  it('applies only what is missing', async () => {
    const url = await emptyDatabase()
    await using(url, (sql) => migrate(sql, [first]))
    expect(await using(url, (sql) => migrate(sql, [first, second]))).toEqual([second.name])
  })

  it('rolls a failing migration back as a whole and keeps the ones before it', async () => {
    const url = await emptyDatabase()
    const failing = step(2, 'create table loopless.two (id int); select 1 / 0')
    const run = using(url, (sql) => migrate(sql, [first, failing]))
    await expect(run).rejects.toMatchObject({
      code: 'MIGRATION_FAILED',
      message: 'Migration 0002_step_2 failed and was rolled back: division by zero',
    })
    const [row] = await using(
      url,
      (sql) => sql`select to_regclass('loopless.one')::text as one, to_regclass('loopless.two')::text as two`,
    )
    expect(row).toEqual({ one: 'loopless.one', two: null })
    expect(await using(url, (sql) => migrate(sql, [first, second]))).toEqual([second.name])
  })

  it('refuses a database that is newer than the code, and leaves it alone', async () => {
    const url = await emptyDatabase()
    await using(url, (sql) => migrate(sql, [first, second]))
    await expect(using(url, (sql) => migrate(sql, [first]))).rejects.toMatchObject({
      name: 'MigrationError',
      code: 'DATABASE_NEWER',
      message: expect.stringContaining('it has migration 0002_step_2, this code knows versions up to 1'),
    })
  })

  it('refuses a migration whose text changed after it was applied, before it applies a new one', async () => {
    const url = await emptyDatabase()
    await using(url, (sql) => migrate(sql, [first]))
    const changed = { ...first, text: `${first.text} -- changed` }
    await expect(using(url, (sql) => migrate(sql, [changed, second]))).rejects.toMatchObject({
      code: 'MIGRATION_CHANGED',
      message: expect.stringContaining('0001_step_1 was changed after it had been applied'),
    })
    const [row] = await using(url, (sql) => sql`select to_regclass('loopless.two')::text as two`)
    expect(row).toEqual({ two: null })
  })

  it('takes a text with other line ends for the same', async () => {
    const url = await emptyDatabase()
    const lines = step(1, 'create table loopless.one (\n id int\n)')
    await using(url, (sql) => migrate(sql, [lines]))
    const fromWindows = { ...lines, text: lines.text.replaceAll('\n', '\r\n') }
    expect(await using(url, (sql) => migrate(sql, [fromWindows]))).toEqual([])
  })

  it('refuses a history with a gap', async () => {
    const url = await emptyDatabase()
    const third = step(3, 'select 1')
    await using(url, (sql) => migrate(sql, [first, third]))
    await expect(using(url, (sql) => migrate(sql, [first, second, third]))).rejects.toMatchObject({
      code: 'MIGRATION_CHANGED',
      message: expect.stringContaining('expected 0003_step_3, got 0002_step_2'),
    })
  })

  it('holds nobody up for long while it waits for a transaction that has published', async () => {
    const before = readMigrations().findIndex(({ name }) => name === '0008_add_checks')
    const url = await emptyDatabase()
    await using(url, (sql) => migrate(sql, readMigrations().slice(0, before)))
    await using(url, (open) =>
      using(url, (other) =>
        using(url, async (sql) => {
          await open`begin`
          await open`select loopless.publish('order.placed', '{}', due_at => now())`
          const migrating = migrate(sql)
          const state = { isDone: false }
          void migrating.finally(() => {
            state.isDone = true
          })
          const isHeldUp = async (): Promise<boolean> =>
            (await open`select from pg_locks where not granted and relation = 'loopless.event'::regclass`)
              .length > 0
          while (!(await isHeldUp()));
          await other`select loopless.publish('order.placed', '{}', due_at => now())`
          while (!(await isHeldUp()));
          await other`select from loopless.claim(now(), gen_random_uuid(), now(), 10, 1000, 10, null)`
          expect(state.isDone).toBe(false)
          await open`commit`
          expect(await migrating).toContain('0008_add_checks')
        }),
      ),
    )
  })

  it('serves a role that owns its database and is no superuser, publishing and claiming included', async () => {
    const role = await plainRole()
    const url = as(role, await emptyDatabase(role))
    expect(await using(url, (sql) => migrate(sql))).toEqual(names)
    const rows = await using(url, async (sql) => {
      await sql`select loopless.publish('order.placed', '{}')`
      return sql`
        select names from loopless.claim(
          '2030-01-01', ${randomUUID()}, '2030-01-01 00:01', 10, 1000, 10, null)`
    })
    expect(rows).toEqual([{ names: 'order.placed' }])
  })

  it('serves a role that may create nothing but in the schema made for it', async () => {
    const role = await plainRole()
    const url = await emptyDatabase()
    await withSession(url, (sql) => sql.unsafe(`create schema loopless authorization ${role}`))
    expect(await using(as(role, url), (sql) => migrate(sql))).toEqual(names)
    expect(await using(as(role, url), (sql) => migrate(sql))).toEqual([])
  })

  it('says in one line what a role lacks that may not create the schema', async () => {
    const role = await plainRole()
    const url = as(role, await emptyDatabase())
    await expect(using(url, (sql) => migrate(sql))).rejects.toMatchObject({
      name: 'DatabaseError',
      sqlState: '42501',
      message: expect.stringMatching(/permission denied for database \S+$/),
    })
  })
})

describe('the schema', async () => {
  const { sql } = await testDatabase()

  it('has a comment on every table and column', async () => {
    const bare = await sql`
      select c.relname || coalesce('.' || a.attname, '') as name
      from pg_class c
      left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      where c.relnamespace = 'loopless'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
        and (obj_description(c.oid, 'pg_class') is null or col_description(c.oid, a.attnum) is null)`
    expect(bare).toEqual([])
  })

  it('compresses payloads by lz4 where the server can, and by its default elsewhere', async () => {
    const [server] = await sql`
      select 'lz4' = any(enumvals) as "hasLz4" from pg_settings where name = 'default_toast_compression'`
    const [payload] = await sql`
      select attcompression as compression from pg_attribute
      where attrelid = 'loopless.event'::regclass and attname = 'payload'`
    expect(payload).toEqual({ compression: server?.['hasLz4'] ? 'l' : '' })
  })

  it('has a comment on every function, and lets nobody but its owner call one', async () => {
    const wrong = await sql`
      select p.proname, obj_description(p.oid, 'pg_proc') is null as bare
      from pg_proc p
      where p.pronamespace = 'loopless'::regnamespace
        and (obj_description(p.oid, 'pg_proc') is null or has_function_privilege('public', p.oid, 'execute'))`
    expect(wrong).toEqual([])
  })

  it('fixes the search path of every function, or has looked its names up already', async () => {
    const open = await sql`
      select p.proname from pg_proc p
      where p.pronamespace = 'loopless'::regnamespace
        and p.prosqlbody is null
        and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)`
    expect(open).toEqual([])
  })

  it.each([
    ['bus_pkey', `insert into loopless.bus default values`],
    ['bus_has_one_row', `insert into loopless.bus (only_row) values (false)`],
    ['bus_registered_whole', `update loopless.bus set handler_set = 'abc'`],
    ['event_name_valid', `insert into loopless.event (name, payload) values ('Not valid', '{}')`],
    ['event_name_valid', `insert into loopless.event (name, payload) values (repeat('a', 201), '{}')`],
    [
      'event_headers_are_object',
      `insert into loopless.event (name, payload, headers) values ('a', '{}', '[]')`,
    ],
    ['handler_name_valid', `insert into loopless.handler values ('', '*', now())`],
    ['handler_name_valid', `insert into loopless.handler values ('no spaces', '*', now())`],
    ['handler_pattern_valid', `insert into loopless.handler values ('order', '', now())`],
    ['handler_pattern_valid', `insert into loopless.handler values ('order', '*.order', now())`],
    ['batch_window_goes_forward', `update loopless.batch set to_snapshot = '1:1:'`],
    ['batch_slice_goes_forward', `update loopless.batch set after_id = 1`],
    ['batch_size_valid', `update loopless.batch set size = -1`],
    ['batch_claimed_when_leased', `update loopless.batch set lease = gen_random_uuid()`],
    ['delivery_reason_known', deliveryWith(`'order', 'bored', 0`)],
    ['delivery_attempt_valid', deliveryWith(`'order', 'released', -1`)],
    ['delivery_attempt_valid', deliveryWith(`'order', 'released', 65536`)],
    ['delivery_attempt_has_handler', deliveryWith(`null, 'retry', 1`)],
    ['delivery_attempt_fits_reason', deliveryWith(`'order', 'retry', 0`)],
    ['delivery_attempt_fits_reason', deliveryWith(`'order', 'redriven', 1`)],
    ['delivery_redriven_has_handler', deliveryWith(`null, 'redriven', 0`)],
    ['delivery_handler_named', deliveryWith(`'', 'released', 0`)],
    ['delivery_event_idx', deliveryWith(`null, 'delayed', 0), ('1', 1, now(), null, 'rebased', 0`)],
    ['attempt_number_valid', attemptWith(`0, now(), now()`)],
    ['attempt_handler_named', attemptWith(`1, now(), now()`, '')],
    ['attempt_ends_after_it_began', attemptWith(`1, now(), now() - interval '1 second'`)],
    ['dead_letter_reason_known', deadLetterWith(`'bored', 1`)],
    ['dead_letter_exhausted_was_tried', deadLetterWith(`'exhausted', 0`)],
    ['dead_letter_handler_named', deadLetterWith(`'invalid', 0`, '')],
    ['dead_letter_attempts_valid', deadLetterWith(`'discarded', 65536`)],
    [
      'dead_letter_event_idx',
      deadLetterWith(`'invalid', 0), ('1', 1, 'order', 'E', '', now(), 'invalid', 0`),
    ],
    ['dedupe_key_event_name_valid', `insert into loopless.dedupe_key values ('', 'key', 1, now())`],
    ['dedupe_key_length_valid', `insert into loopless.dedupe_key values ('order.placed', '', 1, now())`],
  ])('refuses by %s: %s', async (constraint, statement) => {
    await expect(sql.unsafe(statement)).rejects.toMatchObject({ constraint_name: constraint })
  })
})

function deliveryWith(values: string): string {
  return `insert into loopless.delivery (event_xid, event_id, due_at, handler, reason, attempt) values ('1', 1, now(), ${values})`
}

function attemptWith(values: string, handler = 'order'): string {
  return `insert into loopless.attempt (event_id, handler, error_class, error_message, attempt, began_at, ended_at) values (1, '${handler}', 'Error', '', ${values})`
}

function deadLetterWith(values: string, handler = 'order'): string {
  return `insert into loopless.dead_letter (event_xid, event_id, handler, error_class, error_message, died_at, reason, attempts) values ('1', 1, '${handler}', 'Error', '', now(), ${values})`
}
