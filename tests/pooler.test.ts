import { afterAll, beforeAll, beforeEach, describe, expect, inject, it, onTestFinished } from 'vitest'
import {
  type ConnectOptions,
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  drain,
  type HandlerSet,
  migrate,
  poll,
  prune,
  publish,
  publishMany,
  type Sql,
} from '../src/index.ts'
import { testDatabase } from './support/database.ts'
import { findPgBouncer, type Pooler, startPooler } from './support/pooler.ts'
import { withSession } from './support/session.ts'

// A transaction pooler gives each transaction another session: PgBouncer here, RDS Proxy in AWS. Everything goes
// through it in these tests but what looks at the results.

const program = findPgBouncer()
const mustRun = Boolean(process.env['CI'])
const now = new Date('2030-01-01T00:00:00Z')
const later = (seconds: number): Date => new Date(now.getTime() + seconds * 1_000)

describe.skipIf(!program && !mustRun)(
  `behind PgBouncer in transaction mode${program ? '' : ' (needs the package pgbouncer)'}`,
  async () => {
    const { url, sql } = await testDatabase()
    let pooler: Pooler

    beforeAll(async () => {
      if (!program) throw new Error('Expected pgbouncer to be installed: install the package pgbouncer.')
      await sql`create table effect (event_id bigint not null, handler text not null)`
      // what new sessions get: those of the pooler are all made later
      await sql.unsafe(`
        do $$ begin
          execute format('alter role %I in database %I set statement_timeout = ''45s''', current_user, current_database());
        end $$`)
      pooler = await startPooler(program, inject('serverUrl'), 3)
    })
    afterAll(() => pooler?.stop())

    beforeEach(async () => {
      await sql`
        with e as (delete from loopless.event), d as (delete from loopless.delivery), a as (delete from loopless.attempt),
          l as (delete from loopless.dead_letter), b as (update loopless.batch set settled_at = now() where settled_at is null)
        delete from effect`
    })

    const open = (options: ConnectOptions = { prepare: false }): Sql => {
      const client = connect(pooler.urlOf(url), options)
      onTestFinished(() => client.end({ timeout: 1 }))
      return client
    }

    const placed = defineEvent<{ n: number; fails?: boolean }>('pooler.placed')
    const range = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1)

    /** A handler of each kind, where those that are told to fail do so once. */
    const allKinds = (): { handlers: HandlerSet; calls: string[] } => {
      const calls: string[] = []
      const options = { baseDelaySeconds: 0, jitter: 0 }
      const failOnce = (fails: boolean | undefined, attempt: number): void => {
        if (fails && attempt === 1) throw new Error('As told.')
      }
      const handlers = defineHandlers({
        plain: defineHandler(placed, options, async ({ id, payload }, { attempt }) => {
          calls.push(`plain ${id} ${attempt}`)
          failOnce(payload.fails, attempt)
        }),
        transactional: defineHandler(
          placed,
          { ...options, transactional: true },
          async ({ id, payload }, { attempt, tx }) => {
            await tx`insert into effect (event_id, handler) values (${id}, 'transactional')`
            failOnce(payload.fails, attempt)
          },
        ),
        batch: defineHandler(
          placed,
          { ...options, batch: true, transactional: true },
          async (events, { tx }) => {
            await tx`
            insert into effect (event_id, handler)
            select id, 'batch' from unnest(${events.map(({ id }) => id)}::text[]::bigint[]) id`
          },
        ),
      })
      return { handlers, calls }
    }

    const effects = async (): Promise<string[]> =>
      (
        await sql<{ effect: string }[]>`
        select event_id || ' ' || handler as effect from effect order by event_id, handler`
      ).map(({ effect }) => effect)
    const leftovers = () => sql`
      select
        (select count(*)::int from loopless.batch where settled_at is null) as open,
        (select count(*)::int from loopless.delivery) as deliveries,
        (select count(*)::int from loopless.dead_letter) as dead`

    it('gives a client other sessions, with what is set for its role', async () => {
      const held = await Promise.all(range(3).map(() => open().reserve()))
      for (const session of held) await session`begin`
      for (const session of held) await session`commit`
      for (const session of held) session.release()
      const client = open()
      const seen = new Set<string>()
      for (let turn = 0; turn < 3; turn++) {
        const [row] = await client<{ session: string }[]>`
          select pg_backend_pid() || ' ' || current_setting('statement_timeout') as session`
        seen.add(row?.session ?? '')
      }
      expect([...seen]).toHaveLength(3)
      for (const session of seen) expect(session).toMatch(/ 45s$/)
    })

    it('publishes in a transaction, and nothing when it rolls back', async () => {
      const client = open()
      const ids = await client.begin(async (tx) => {
        const id = await publish(tx, placed({ n: 1 }), { headers: { from: 'here' }, dedupeKey: 'one' })
        return [id, ...(await publishMany(tx, [placed({ n: 2 }), placed({ n: 3 })]))]
      })
      const back = client.begin(async (tx) => {
        await publish(tx, placed({ n: 4 }))
        throw new Error('back')
      })
      await expect(back).rejects.toThrow('back')
      await client`select loopless.publish('pooler.placed', '{"n": 5}')`
      const rows = await sql`select payload ->> 'n' as n from loopless.event order by id`
      expect(rows.map(({ n }) => n)).toEqual(['1', '2', '3', '5'])
      expect(ids).toHaveLength(3)
    })

    it('polls with handlers of every kind, retries included', async () => {
      const client = open()
      const ids = await publishMany(
        client,
        range(5).map((n) => placed({ n, fails: n === 3 })),
      )
      const { handlers, calls } = allKinds()
      const first = await poll(now, { sql: client, handlers, log: () => {} })
      expect(first).toMatchObject({ claimed: 5, succeeded: 13, retried: 2, dead: 0 })
      const second = await poll(now, { sql: client, handlers, log: () => {} })
      expect(second).toMatchObject({ claimed: 2, succeeded: 2, nextDueAt: null })
      expect(calls).toEqual([...ids.map((id) => `plain ${id} 1`), `plain ${ids[2]} 2`])
      expect(await effects()).toEqual(ids.flatMap((id) => [`${id} batch`, `${id} transactional`]))
      expect(await leftovers()).toEqual([{ open: 0, deliveries: 0, dead: 0 }])
    })

    it('drains with two pollers at once, each event once', async () => {
      const ids = await publishMany(
        open(),
        range(400).map((n) => placed({ n, fails: n % 50 === 0 })),
      )
      const { handlers, calls } = allKinds()
      const drainOnce = () =>
        drain({
          sql: open(),
          handlers,
          clock: () => now,
          deadline: later(600),
          limits: { events: 40 },
          log: () => {},
        })
      const reports = [...(await Promise.all([drainOnce(), drainOnce()])), await drainOnce()]
      const sumOf = (key: 'succeeded' | 'retried' | 'leasesLost' | 'repaired'): number =>
        reports.reduce((sum, report) => sum + report[key], 0)
      expect(sumOf('succeeded')).toBe(1_200)
      expect(sumOf('retried')).toBe(16)
      expect(sumOf('leasesLost') + sumOf('repaired')).toBe(0)
      expect(calls).toHaveLength(408)
      expect(new Set(calls).size).toBe(408)
      expect(await effects()).toEqual(ids.flatMap((id) => [`${id} batch`, `${id} transactional`]))
      expect(await leftovers()).toEqual([{ open: 0, deliveries: 0, dead: 0 }])
    })

    it('frees what a dead poller held, to run alone', async () => {
      const [id] = await publishMany(open(), [placed({ n: 1 })])
      await open()`
        select from loopless.claim(${now}, gen_random_uuid(), ${later(75)}, 10, 1000, 10, null)`
      const { handlers, calls } = allKinds()
      const report = await poll(later(75), { sql: open(), handlers, log: () => {} })
      expect(report).toMatchObject({ repaired: 1, succeeded: 3, nextDueAt: null })
      expect(calls).toEqual([`plain ${id} 1`])
    })

    it('stops the statement of a handler that is given up', async () => {
      await publishMany(open(), [placed({ n: 1 })])
      const slow = defineHandler(
        placed,
        { transactional: true, timeoutSeconds: 0.1, maxAttempts: 1 },
        (_event, { tx }) => tx`select pg_sleep(3600)`,
      )
      const handlers = defineHandlers({ slow })
      expect(await poll(now, { sql: open(), handlers, log: () => {} })).toMatchObject({ dead: 1 })
      expect(await sql`select error_class from loopless.attempt`).toEqual([{ error_class: 'TimeoutError' }])
    })

    it('migrates and prunes', async () => {
      const database = `${new URL(url).pathname.slice(1)}_migrated`
      await withSession(url, (client) => client`create database ${client(database)}`)
      onTestFinished(() =>
        withSession(url, async (client) => {
          await client`drop database ${client(database)} with (force)`
        }),
      )
      const client = connect(pooler.urlOf(Object.assign(new URL(url), { pathname: database }).href), {
        prepare: false,
      })
      onTestFinished(() => client.end({ timeout: 1 }))
      expect((await migrate(client)).length).toBeGreaterThan(0)
      expect(await migrate(client)).toEqual([])
      expect(await prune(client, now)).toMatchObject({ isComplete: true })
    })

    it('takes the choice from the url too', async () => {
      const client = connect(`${pooler.urlOf(url)}?prepare=false`)
      onTestFinished(() => client.end({ timeout: 1 }))
      expect(await client`select 1 as one`).toEqual([{ one: 1 }])
    })

    it('refuses a client that does not say so, and the error says what to do', async () => {
      const refused = poll(now, { sql: open({}), handlers: defineHandlers({}) })
      await expect(refused).rejects.toMatchObject({
        name: 'DatabaseError',
        sqlState: '08P01',
        message: expect.stringContaining('connect with prepare: false'),
      })
    })

    it.each(['statementTimeoutMs', 'idleInTransactionTimeoutMs'])(
      'takes no limit of a session: %s is refused, but for none',
      async (name) => {
        expect(() => open({ prepare: false, [name]: 5_000 })).toThrow(
          `Expected ${name} to be left out with prepare: false, got 5000`,
        )
        expect(await open({ prepare: false, [name]: 0 })`select 1 as one`).toEqual([{ one: 1 }])
      },
    )
  },
)
