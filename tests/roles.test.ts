import { randomUUID } from 'node:crypto'
import { afterAll, describe, expect, inject, it } from 'vitest'
import { readMigrations } from '../src/db/migrate.ts'
import {
  connect,
  createRoles,
  defineEvent,
  defineHandler,
  defineHandlers,
  help,
  type Migration,
  migrate,
  prune,
  publish,
  publishMany,
  type Sql,
} from '../src/index.ts'
import { commandLine } from './support/cli.ts'
import { testDatabase } from './support/database.ts'
import { as, testRoles } from './support/roles.ts'
import { startServer } from './support/server.ts'
import { withSession } from './support/session.ts'

const now = new Date('2030-01-01T00:00:00Z')
const roles = testRoles()
const { names } = roles
const { sql, url } = await testDatabase()
await createRoles(sql, { now, names })
await roles.letIn(...Object.values(names))

const [publisher, poller, viewer] = [names.publisher, names.poller, names.viewer].map((name) =>
  connect(as(name, url)),
) as [Sql, Sql, Sql]
afterAll(() => Promise.all([publisher, poller, viewer].map((client) => client.end({ timeout: 1 }))))

const emptied: string[] = []
afterAll(() =>
  withSession(inject('serverUrl'), async (admin) => {
    for (const name of emptied) await admin`drop database ${admin(name)} with (force)`
  }),
)

/** What nobody but the owner may call: what it changes is the operator's to decide, or it is a part of what is called. */
const ownersOnly = [
  'grant_part',
  'missing_rights',
  'renew_roles',
  'rebase',
  'redrive',
  'register',
  'set_wake',
  'test_wake',
  'unset_wake',
]
const internals = [
  'check_headers',
  'check_poller',
  'claim_batch',
  'claim_due',
  'count_within',
  'epoch_ms',
  'hold_key',
  'invoke_target',
  'lease_batch',
  'read_deliveries',
  'recover',
  'send_wake',
  'settle_outcomes',
  'settled_horizon',
  'wake',
  'wake_on_publish',
  'window_events',
]

/** Every function and table of the schema, with a statement that uses it. */
async function everyUse(): Promise<{ name: string; statement: string }[]> {
  const functions = await sql<{ name: string; statement: string }[]>`
    select p.proname as name, format('select loopless.%I(%s)', p.proname, (
      select string_agg(format('null::%s', a.type::regtype), ', ' order by a.place)
      from unnest(p.proargtypes) with ordinality a (type, place)
    )) as statement
    from pg_proc p
    where p.pronamespace = 'loopless'::regnamespace and p.prorettype <> 'trigger'::regtype`
  const tables = await sql<{ name: string }[]>`
    select c.relname as name from pg_class c
    where c.relnamespace = 'loopless'::regnamespace and c.relkind in ('r', 'v')`
  const uses = tables.flatMap(({ name }) =>
    [
      `select from loopless.${name}`,
      `insert into loopless.${name} default values`,
      `delete from loopless.${name}`,
      `truncate loopless.${name}`,
    ].map((statement) => ({ name, statement })),
  )
  return [...functions, ...uses]
}

/** The statements among these that are not refused for want of a right. */
async function allowed(client: Sql, uses: { name: string; statement: string }[]): Promise<string[]> {
  const found: string[] = []
  for (const { statement } of uses) {
    const code = await client
      .begin(async (tx) => {
        await tx.unsafe(statement)
        throw Object.assign(new Error('rolled back'), { code: 'allowed' })
      })
      .catch((error: { code: string }) => error.code)
    // a view can be neither truncated nor inserted into, whatever rights one has
    if (code !== '42501' && code !== '42809' && code !== '55000') found.push(statement)
  }
  return found
}

const namesIn = (statements: string[]): string[] => [
  ...new Set(statements.map((statement) => statement.match(/loopless\.(\w+)/)?.[1] ?? '')),
]

const placed = defineEvent<{ n: number }>('order.placed')

describe('the roles', () => {
  it('know of every function of the schema whose it is', async () => {
    const functions = await sql<{ name: string }[]>`
      select distinct p.proname as name from pg_proc p where p.pronamespace = 'loopless'::regnamespace order by 1`
    const granted = await sql<{ name: string }[]>`
      select distinct f.function_name as name from loopless.part_function f`
    const known = [...granted.map(({ name }) => name), ...ownersOnly, ...internals].sort()
    expect(functions.map(({ name }) => name).sort()).toEqual(known)
  })

  it('let the publisher publish', async () => {
    const id = await publisher.begin((tx) => publish(tx, placed({ n: 1 }), { dedupeKey: 'one' }))
    const ids = await publisher.begin((tx) => publishMany(tx, [placed({ n: 2 }), placed({ n: 3 })]))
    expect(await sql`select id from loopless.event order by id`).toEqual([id, ...ids].map((id) => ({ id })))
    await sql`truncate loopless.event`
  })

  it('let the publisher do nothing else', async () => {
    const uses = await everyUse()
    expect(uses.length).toBeGreaterThan(70)
    const found = await allowed(publisher, uses)
    expect(namesIn(found).sort()).toEqual(['publish', 'publish_each', 'publish_many'])
  })

  it.each([
    'create table loopless.mine (id int)',
    'create schema mine',
    'drop schema loopless cascade',
    'alter table loopless.event disable trigger all',
    'create role mine',
  ])('let none of them: %s', async (statement) => {
    for (const client of [publisher, poller, viewer]) {
      await expect(client.unsafe(statement)).rejects.toMatchObject({ code: '42501' })
    }
  })

  it('let the viewer read everything, and do nothing else', async () => {
    const uses = await everyUse()
    const found = await allowed(viewer, uses)
    const reads = uses.filter(({ statement }) => statement.startsWith('select from'))
    expect(found).toEqual(reads.map(({ statement }) => statement))
  })

  it('let the viewer use the commands that look', async () => {
    const [row] = await sql`select loopless.publish('order.placed', '{}') as id`
    const loopless = commandLine(as(names.viewer, url))
    for (const command of ['status', `why ${row?.['id']}`, 'dead list']) {
      expect(await loopless(...command.split(' '))).toMatchObject({ code: 0, err: '' })
    }
    expect(await loopless('dead', 'redrive', '--all', '--yes')).not.toMatchObject({ code: 0 })
    await sql`truncate loopless.event`
  })

  it('let the poller call and read what it needs, and change nothing by itself', async () => {
    const uses = await everyUse()
    const found = await allowed(poller, uses)
    const granted = await sql<{ name: string }[]>`
      select f.function_name as name from loopless.part_function f where f.part = 'poller'`
    const calls = found.filter((statement) => !statement.startsWith('select from'))
    expect(namesIn(calls).sort()).toEqual(granted.map(({ name }) => name).sort())
  })

  it('let the poller handle everything: plain, in a transaction, in a batch, delayed, retried, dead', async () => {
    await sql`select loopless.rebase(${now})`
    await sql`create table done (name text, n int)`
    await sql`grant insert on done to ${sql(names.poller)}`
    const numbers = Array.from({ length: 40 }, (_, n) => n)
    await publisher.begin(async (tx) => {
      for (const n of numbers) await publish(tx, placed({ n }))
      await publish(tx, placed({ n: 40 }), {
        dueAt: new Date(now.getTime() + 30_000),
      })
    })
    let batched = 0
    let failures = 0
    const handlers = defineHandlers({
      plain: defineHandler(placed, { baseDelaySeconds: 1 }, ({ payload: { n } }) => {
        if (n === 7 && failures++ === 0) throw new Error('once')
      }),
      exact: defineHandler(placed, { transactional: true }, async ({ payload: { n } }, { tx }) => {
        await tx`insert into done (name, n) values ('exact', ${n})`
        if (n === 3) await publish(tx, defineEvent<object>('order.followed')({ n }))
      }),
      batch: defineHandler('order.*', { batch: true }, (events) => {
        batched += events.length
      }),
      hopeless: defineHandler('order.followed', { maxAttempts: 1 }, () => {
        throw new Error('always')
      }),
    })
    for (const seconds of [0, 20, 40]) {
      const at = new Date(now.getTime() + seconds * 1000)
      await help({
        sql: poller,
        handlers,
        clock: () => at,
        deadline: new Date(at.getTime() + 9_000),
        maxPollers: 2,
      })
    }
    expect(batched).toBe(42)
    expect((await sql`select n from done order by n`).map(({ n }) => n)).toEqual([...numbers, 40])
    expect(await sql`select handler from loopless.dead_letter`).toEqual([{ handler: 'hopeless' }])
    expect(await sql`select from loopless.delivery`).toEqual([])

    const later = new Date(now.getTime() + 100 * 86_400_000)
    await sql`update loopless.event set published_at = ${now}`
    const days = { eventDays: 7, attemptDays: 30, deadLetterDays: 30 }
    await prune(poller, later, days)
    expect(await prune(poller, later, days)).toMatchObject({ isComplete: true })
    expect(await sql`select from loopless.event`).toEqual([])
  })
})

describe('createRoles', () => {
  const missing = async (name: string, part: string): Promise<string[]> =>
    (await sql<{ right: string }[]>`select r as right from loopless.missing_rights(${name}, ${part}) r`).map(
      ({ right }) => right,
    )

  it('changes nothing the second time', async () => {
    expect(await createRoles(sql, { now, names })).toEqual([
      { part: 'publisher', name: names.publisher, isCreated: false, granted: [] },
      { part: 'poller', name: names.poller, isCreated: false, granted: [] },
      { part: 'viewer', name: names.viewer, isCreated: false, granted: [] },
    ])
  })

  it('gives back a right that was taken away, and says which', async () => {
    await sql`revoke select on loopless.event from ${sql(names.viewer)}`
    await sql`revoke execute on function loopless.publish from ${sql(names.publisher)}`
    const [one, , other] = await createRoles(sql, { now, names })
    expect(one?.granted).toEqual([
      expect.stringMatching(/^execute on function loopless\.publish\(text,json,/),
    ])
    expect(other?.granted).toEqual(['select on loopless.event'])
  })

  it('grants to a role of any name that exists already', async () => {
    const shop = await roles.make()
    const granted = await createRoles(sql, { now, names: { ...names, publisher: shop } })
    expect(granted[0]).toMatchObject({ name: shop, isCreated: false })
    await withSession(as(shop, url), (own) => own`select loopless.publish('order.placed', '{}')`)
  })

  it('limits what a session of a new role may take, and leaves a role that exists as it is', async () => {
    const shop = await roles.make()
    await createRoles(sql, { now, names: { ...names, publisher: shop } })
    const rows = await sql<{ name: string; settings: string[] | null }[]>`
      select rolname as name, rolconfig as settings from pg_roles where rolname in (${names.poller}, ${shop})`
    const limits = ['statement_timeout=60s', 'idle_in_transaction_session_timeout=30s']
    expect(Object.fromEntries(rows.map(({ name, settings }) => [name, settings]))).toEqual({
      [names.poller]: limits,
      [shop]: null,
    })
  })

  it('takes a name that must be quoted', async () => {
    const name = `${names.viewer} "é"; drop`
    const [, , created] = await createRoles(sql, { now, names: { ...names, viewer: name } })
    expect(created).toMatchObject({ name, isCreated: true })
    expect(await missing(name, 'viewer')).toEqual([])
  })

  it.each(['', 'x'.repeat(64)])('refuses a name that Postgres does not keep: "%s"', async (poller) => {
    await expect(createRoles(sql, { now, names: { ...names, poller } })).rejects.toMatchObject({
      name: 'InvalidOptionError',
      message: expect.stringContaining('Expected the name of the poller to be a role of 1–63 bytes'),
    })
  })

  it('creates each role once when many run at once, in two databases', async () => {
    const other = await emptyDatabase()
    await using(other, (client) => migrate(client))
    const fresh = {
      publisher: `${names.publisher}_2`,
      poller: `${names.poller}_2`,
      viewer: `${names.viewer}_2`,
    }
    const runs = Array.from({ length: 10 }, (_, index) =>
      using(index % 2 ? url : other, (client) => createRoles(client, { now, names: fresh })),
    )
    const results = (await Promise.all(runs)).flat()
    for (const name of Object.values(fresh)) {
      expect(results.filter((role) => role.name === name && role.isCreated)).toHaveLength(1)
    }
    expect(await missing(fresh.poller, 'poller')).toEqual([])
  })

  it('says what to do when the role may not create roles, and then grants to roles that were made for it', async () => {
    const owner = await roles.make()
    const database = await emptyDatabase(owner)
    await using(as(owner, database), (client) => migrate(client))
    const wanted = { publisher: `${owner}_a`, poller: `${owner}_b`, viewer: `${owner}_c` }
    const run = () => using(as(owner, database), (client) => createRoles(client, { now, names: wanted }))
    await expect(run()).rejects.toMatchObject({
      name: 'RoleError',
      code: 'ROLE_NOT_CREATED',
      message: `The role "${owner}_a" does not exist, and creating it takes CREATEROLE. Run this as an administrator (in RDS the master user), or have one run: create role ${owner}_a login. After that this only grants.`,
    })
    for (const name of Object.values(wanted)) await sql`create role ${sql(name)} login`
    expect(await run()).toMatchObject([{ isCreated: false }, { isCreated: false }, { isCreated: false }])
  })

  it('serves an administrator that owns the database and is no superuser', async () => {
    const owner = await roles.make()
    await sql`alter role ${sql(owner)} createrole`
    const database = await emptyDatabase(owner)
    const wanted = { publisher: `${owner}_a`, poller: `${owner}_b`, viewer: `${owner}_c` }
    const created = await using(as(owner, database), async (client) => {
      await migrate(client)
      return createRoles(client, { now, names: wanted })
    })
    expect(created.map(({ isCreated }) => isCreated)).toEqual([true, true, true])
  })

  it('says what to do when somebody else owns the schema', async () => {
    const stranger = await roles.make()
    await sql`grant usage on schema loopless to ${sql(stranger)}`
    await sql`grant execute on all functions in schema loopless to ${sql(stranger)}`
    await sql`revoke select on loopless.event from ${sql(names.viewer)}`
    await expect(
      using(as(stranger, url), (client) => createRoles(client, { now, names })),
    ).rejects.toMatchObject({
      name: 'RoleError',
      message: expect.stringMatching(
        /^The rights of ".*" cannot be granted: .*\. Run this as the role that ran migrate, which owns the schema\.$/,
      ),
    })
    await createRoles(sql, { now, names })
  })

  it('says that the schema is missing, or older than the roles', async () => {
    const database = await emptyDatabase()
    const run = () => using(database, (client) => createRoles(client, { now, names }))
    await expect(run()).rejects.toMatchObject({ name: 'SchemaMissingError' })
    await using(database, (client) => migrate(client, readMigrations().slice(0, 5)))
    await expect(run()).rejects.toMatchObject({ name: 'SchemaMissingError' })
  })

  it('lets nobody sign in by token where there is no RDS', async () => {
    await expect(createRoles(sql, { now, names, withTokens: true })).rejects.toMatchObject({
      name: 'RoleError',
      message: expect.stringContaining('There is no role rds_iam here'),
    })
  })
})

describe('a later migration', () => {
  const newest = readMigrations()
  const later: Migration = {
    version: newest.length + 1,
    name: 'a_later_one',
    text: `
      create table loopless.later (id int);
      create function loopless.later() returns int language sql as 'select 1';
      drop function loopless.release;
      create function loopless.release(at timestamptz, token uuid, why text default '') returns int language sql as 'select 1';
      insert into loopless.part_function values ('poller', 'later');
      revoke execute on all functions in schema loopless from public;`,
  }

  it('gives each role what it adds, in its own transaction', async () => {
    const database = await emptyDatabase()
    await using(database, async (client) => {
      await migrate(client)
      await createRoles(client, { now, names })
      await migrate(client, [...newest, later])
    })
    await withSession(as(names.poller, database), async (client) => {
      await client`select loopless.later()`
      await client`select loopless.release(now(), gen_random_uuid())`
    })
    await withSession(as(names.viewer, database), (client) => client`select from loopless.later`)
    await expect(
      withSession(as(names.publisher, database), (client) => client`select loopless.later()`),
    ).rejects.toMatchObject({ code: '42501' })
  })

  it('passes over a role that the cluster does not have, as after a restore', async () => {
    const database = await emptyDatabase()
    await using(database, async (client) => {
      await migrate(client)
      await client`insert into loopless.role values ('nobody_here', 'poller', now())`
      expect(await migrate(client, [...newest, later])).toEqual([later.name])
    })
  })
})

describe('with RDS', () => {
  it('lets the roles in by token, but not the one who runs it', async () => {
    const server = await startServer()
    try {
      await withSession(server.url, async (admin) => {
        await admin`create role rds_iam`
        await admin`create role master login createrole`
        await admin`alter database postgres owner to master`
      })
      const rds = as('master', server.url)
      const refused = await using(rds, async (client) => {
        await migrate(client)
        return createRoles(client, { now, withTokens: true }).catch((error: Error) => error)
      })
      expect(refused).toMatchObject({
        name: 'RoleError',
        message: expect.stringMatching(
          /^"loopless_publisher" cannot be made a member of rds_iam: .*\. Run this as the master user of the database, or have that run: grant rds_iam to master with admin option;$/,
        ),
      })
      await withSession(server.url, (admin) => admin`grant rds_iam to master with admin option`)
      const options = { now, withTokens: true, names: { viewer: 'master' } }
      const created = await using(rds, (client) => createRoles(client, options))
      expect(created.map(({ granted }) => granted.includes('rds_iam'))).toEqual([true, true, false])
      const again = await using(rds, (client) => createRoles(client, options))
      expect(again.map(({ granted }) => granted)).toEqual([[], [], []])
    } finally {
      await server.destroy()
    }
  })
})

async function using<Result>(url: string, use: (sql: Sql) => Promise<Result>): Promise<Result> {
  const client = connect(url)
  try {
    return await use(client)
  } finally {
    await client.end({ timeout: 1 })
  }
}

async function emptyDatabase(owner?: string): Promise<string> {
  const name = `loopless_${randomUUID().replaceAll('-', '')}`
  await withSession(inject('serverUrl'), async (admin) => {
    await admin`create database ${admin(name)}`
    if (owner) await admin`alter database ${admin(name)} owner to ${admin(owner)}`
  })
  emptied.push(name)
  const url = new URL(inject('serverUrl'))
  url.pathname = `/${name}`
  return url.href
}
