import { afterAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import {
  type ConnectOptions,
  connect,
  DatabaseError,
  defineEvent,
  defineHandler,
  defineHandlers,
  drain,
  LooplessError,
  migrate,
  type OutgoingEvent,
  type PollReport,
  poll,
  publishMany,
  type Sql,
  type TransactionSql,
} from '../src/index.ts'
import { testDatabase } from './support/database.ts'
import { type ProxyMessage, startProxy, type Verdict } from './support/proxy.ts'
import { startServer } from './support/server.ts'
import { tortureSeconds } from './support/torture.ts'

const { url, sql } = await testDatabase()
await sql`create table effect (event_id bigint not null)`
const proxy = await startProxy(url)
afterAll(() => proxy.close())

const began = Date.UTC(2030, 0, 1)
const at = (seconds: number): Date => new Date(began + seconds * 1000)
/** The lease of a poll at second 0: 60 s, and a margin of 15. */
const leaseSeconds = 75

const plain = defineEvent<{ fails: boolean }>('fault.plain')
const transactional = defineEvent<{ fails: boolean }>('fault.transactional')
const calls: string[] = []
const fail = ({ payload }: { payload: { fails: boolean } }, attempt: number): void => {
  if (payload.fails && attempt === 1) throw new Error('As told.')
}
const options = { baseDelaySeconds: 1, jitter: 0 }
const handlers = defineHandlers({
  plain: defineHandler(plain, options, async (event, { attempt }) => {
    calls.push(event.id)
    fail(event, attempt)
  }),
  transactional: defineHandler(transactional, { ...options, transactional: true }, async (event, context) => {
    await context.tx`insert into effect (event_id) values (${event.id})`
    fail(event, context.attempt)
  }),
})

beforeEach(async () => {
  await clear()
})
async function clear(): Promise<void> {
  proxy.judge(() => 'forward')
  calls.length = 0
  await sql`
    with e as (delete from loopless.event), d as (delete from loopless.delivery), a as (delete from loopless.attempt),
      l as (delete from loopless.dead_letter), b as (update loopless.batch set settled_at = now() where settled_at is null)
    delete from effect`
}

/** Where a connection can be lost: any message of a poll but rows and settings, which come in the middle of others. */
function isBoundary({ from, type }: ProxyMessage): boolean {
  return from === 'client' || (type !== 'D' && type !== 'S')
}

type Loss = (message: ProxyMessage, isAfter: boolean) => Verdict
/** How it is lost at its message; `isAfter`: at a later one. */
const losses: Record<string, Loss> = {
  'lost once': (_message, isAfter) => (isAfter ? 'forward' : 'cut'),
  'lost while the server works': ({ from }, isAfter) =>
    isAfter ? 'forward' : from === 'client' ? 'cut behind' : 'cut',
  'lost for good': () => 'cut',
}

type Poller = (client: Sql) => Promise<unknown>
const pollOnce: Poller = (client) => poll(at(0), { sql: client, handlers, log: () => {} })
/** Event by event, so that settlements and claims are sent together. */
const drainSingly: Poller = (client) =>
  drain({
    sql: client,
    handlers,
    clock: () => at(0),
    deadline: at(600),
    limits: { events: 1 },
    log: () => {},
  })

/** Polls over a connection that is lost at its n-th message; undefined when there were fewer. */
async function runWithLoss(
  run: Poller,
  client: Sql,
  n: number,
  loss: Loss,
): Promise<'ended' | 'refused' | undefined> {
  let count = 0
  proxy.judge((message) => {
    if (isBoundary(message)) count++
    return count < n ? 'forward' : loss(message, count > n)
  })
  const outcome = await within(10_000, run(client)).then(
    () => 'ended' as const,
    (error: unknown) => {
      if (error instanceof LooplessError) return 'refused' as const
      throw error
    },
  )
  proxy.judge(() => 'forward')
  return count < n ? undefined : outcome
}

async function within<Result>(ms: number, work: Promise<Result>): Promise<Result> {
  const timer = Promise.withResolvers<never>()
  const timeout = setTimeout(() => timer.reject(new Error(`It took more than ${ms} ms.`)), ms)
  return Promise.race([work, timer.promise]).finally(() => clearTimeout(timeout))
}

/** Later polls of the same client handle whatever is left. */
async function pollRest(client: Sql): Promise<void> {
  let now = at(leaseSeconds)
  for (let turn = 0; turn < 50; turn++) {
    const report: PollReport = await within(10_000, poll(now, { sql: client, handlers, log: () => {} }))
    if (report.claimed > 0) continue
    if (report.nextDueAt === null) return
    now = new Date(Math.max(now.getTime(), report.nextDueAt.getTime()))
  }
  throw new Error('After 50 polls something still waits.')
}

/** Each way at each message under torture; in `npm test` the ways take turns, and the longer runs lose every third or seventh. */
const ways = Object.keys(losses)
const turns = tortureSeconds
  ? ways
  : ['lost once', 'lost while the server works', 'lost once', 'lost while the server works', 'lost for good']

const plainEvents = [plain({ fails: false }), plain({ fails: true })]
const allEvents = [...plainEvents, transactional({ fails: false }), transactional({ fails: true })]

test.for<[string, { run: Poller; step: number; events: ReadonlyArray<OutgoingEvent> }]>([
  ['a poll with plain handlers', { run: pollOnce, step: 1, events: plainEvents }],
  [
    'a poll with plain and transactional handlers',
    { run: pollOnce, step: tortureSeconds ? 1 : 3, events: allEvents },
  ],
  [
    'a drain, where settlements and claims are sent together',
    {
      run: drainSingly,
      step: tortureSeconds ? 1 : 3,
      events: [...plainEvents, ...plainEvents, ...allEvents],
    },
  ],
])(
  'loses and repeats nothing when its connection is lost at any message of %s',
  { timeout: 300_000 },
  async ([, { run, step, events }]) => {
    const outcomes = { ended: 0, refused: 0 }
    for (let round = 0; round < (tortureSeconds ? ways.length : 1); round++) {
      for (let n = 1; ; n += step) {
        const name = turns[((n - 1) / step + round) % turns.length] ?? ''
        await clear()
        const ids = await publishMany(sql, events)
        const client = connect(proxy.url)
        const outcome = await runWithLoss(run, client, n, losses[name] as Loss)
        await pollRest(client)
        await client.end({ timeout: 1 })
        const idsOf = (isOne: (event: OutgoingEvent) => boolean): string[] =>
          ids.filter((_, index) => isOne(events[index] as OutgoingEvent))
        expect(await found(), `${name} at message ${n}`).toEqual({
          effects: idsOf((event) => event.name === transactional.eventName),
          attempts: idsOf(({ payload }) => (payload as { fails: boolean }).fails).map(
            (id) => `${id} 1 Error`,
          ),
          open: 0,
          deliveries: 0,
          dead: 0,
        })
        const called = idsOf((event) => event.name === plain.eventName)
        expect(calls, `${name} at message ${n}`).toEqual(expect.arrayContaining(called))
        if (outcome === undefined) break
        outcomes[outcome]++
      }
    }
    expect(outcomes.refused).toBeGreaterThan(10)
    if (tortureSeconds) console.log(outcomes)
  },
)

/** A poller of its own for a test. */
function open(options?: ConnectOptions): Sql {
  const client = connect(url, options)
  onTestFinished(() => client.end({ timeout: 1 }))
  return client
}

/** Polls with one transactional handler, tried again after a second, beside one that always succeeds. */
function pollWith(
  client: Sql,
  run: (tx: TransactionSql, eventId: string) => Promise<unknown>,
  now: Date = at(0),
): Promise<PollReport> {
  const set = defineHandlers({
    beside: defineHandler(plain, options, () => {}),
    transactional: defineHandler(
      transactional,
      { ...options, transactional: true },
      async ({ id }, { tx }) => {
        await tx`insert into effect (event_id) values (${id})`
        await run(tx, id)
      },
    ),
  })
  return within(15_000, poll(now, { sql: client, handlers: set, log: () => {} }))
}

const nothingLeft = { attempts: [], open: 0, deliveries: 0, dead: 0 }
const nothing = async (): Promise<void> => {}

test.for([true, false])(
  'survives that its session is ended in a handler (which notices: %s)',
  async (isNoticed) => {
    const ids = await publishMany(sql, [transactional({ fails: false }), transactional({ fails: false })])
    const client = open()
    const refused = pollWith(client, async (tx, eventId) => {
      if (eventId !== ids[0]) return
      const [session] = await tx<{ pid: number }[]>`select pg_backend_pid() as pid`
      await sql`select pg_terminate_backend(${session?.pid ?? 0}, 1000)`
      if (isNoticed) await tx`select 1`
    })
    await expect(refused).rejects.toBeInstanceOf(DatabaseError)
    expect(await found()).toMatchObject({ effects: [], attempts: [] })
    expect(await pollWith(client, nothing)).toMatchObject({ claimed: 2, succeeded: 2 })
    expect(await found()).toEqual({ ...nothingLeft, effects: ids })
  },
)

test('goes on after the server was restarted between two polls, and says when there is none', async () => {
  const server = await startServer()
  onTestFinished(() => server.destroy())
  const client = connect(server.url)
  onTestFinished(() => client.end({ timeout: 1 }))
  await migrate(client)
  await client`create table effect (event_id bigint not null)`
  const publishOne = (): Promise<string[]> => publishMany(client, [transactional({ fails: false })])
  await publishOne()
  expect(await pollWith(client, nothing)).toMatchObject({ succeeded: 1 })
  await publishOne()
  await server.stop()
  await expect(pollWith(client, nothing)).rejects.toMatchObject({ name: 'DatabaseError' })
  await expect(pollWith(client, nothing)).rejects.toMatchObject({
    name: 'DatabaseError',
    sqlState: 'ECONNREFUSED',
  })
  await server.start()
  expect(await pollWith(client, nothing)).toMatchObject({ succeeded: 1, repaired: 0 })
  expect(await client`select count(*)::int as effects from effect`).toEqual([{ effects: 2 }])
}, 60_000)

describe('on a server that has become read-only', () => {
  const readOnly = { name: 'DatabaseError', sqlState: '25006' }

  test('claims nothing and says why', async () => {
    await publishMany(sql, [plain({ fails: false })])
    const client = open()
    await client`set default_transaction_read_only = on`
    await expect(pollWith(client, nothing)).rejects.toMatchObject(readOnly)
    await client`set default_transaction_read_only = off`
    expect(await pollWith(client, nothing)).toMatchObject({ claimed: 1, succeeded: 1, repaired: 0 })
  })

  test.for([
    ['plain handlers', [plain]],
    ['transactional handlers', [plain, transactional]],
  ] as const)('settles nothing of %s, which run again', async ([, kinds]) => {
    const ids = await publishMany(
      sql,
      kinds.map((define) => define({ fails: false })),
    )
    const client = open()
    const set = defineHandlers({
      plain: defineHandler(plain, {}, async () => {
        await client`set default_transaction_read_only = on`
      }),
      transactional: defineHandler(transactional, { transactional: true }, async ({ id }, { tx }) => {
        await tx`insert into effect (event_id) values (${id})`
      }),
    })
    const refused = within(15_000, poll(at(0), { sql: client, handlers: set, log: () => {} }))
    await expect(refused).rejects.toMatchObject(readOnly)
    await client`set default_transaction_read_only = off`
    const count = ids.length
    expect(await pollWith(client, nothing, at(leaseSeconds))).toMatchObject({
      claimed: count,
      succeeded: count,
    })
    expect(await found()).toEqual({ ...nothingLeft, effects: ids.slice(1) })
  })
})

describe('a statement that takes too long', () => {
  test("in a handler is that handler's failure", async () => {
    const [slow = '', quick = ''] = await publishMany(sql, [
      transactional({ fails: false }),
      transactional({ fails: false }),
    ])
    const report = await pollWith(open(), async (tx, eventId) => {
      if (eventId !== slow) return
      await tx`set local statement_timeout = 20`
      await tx`select pg_sleep(10)`
    })
    expect(report).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await found()).toMatchObject({
      effects: [quick],
      attempts: [`${slow} 1 PostgresError`],
      deliveries: 1,
    })
  })

  test('in a claim fails the poll, and nothing was claimed', async () => {
    await publishMany(sql, [plain({ fails: false })])
    const client = open({ statementTimeoutMs: 100 })
    await sql.begin(async (tx) => {
      await tx`select pg_advisory_xact_lock(1280262992, 1)`
      await expect(pollWith(client, nothing)).rejects.toMatchObject({
        name: 'DatabaseError',
        sqlState: '57014',
      })
    })
    expect(await pollWith(open(), nothing)).toMatchObject({ claimed: 1, succeeded: 1, repaired: 0 })
  })

  test('in the settlement fails the poll, and the events run again', async () => {
    const [id = ''] = await publishMany(sql, [plain({ fails: false })])
    const client = open({ statementTimeoutMs: 1_000 })
    const locked = Promise.withResolvers<void>()
    const unlock = Promise.withResolvers<void>()
    const locking = Promise.withResolvers<Promise<unknown>>()
    const set = defineHandlers({
      plain: defineHandler(plain, {}, async () => {
        const holder = sql.begin(async (tx) => {
          await tx`select 1 from loopless.batch where settled_at is null for update`
          locked.resolve()
          await unlock.promise
        })
        locking.resolve(holder)
        await locked.promise
      }),
    })
    const refused = within(15_000, poll(at(0), { sql: client, handlers: set, log: () => {} }))
    await expect(refused).rejects.toMatchObject({ name: 'DatabaseError', sqlState: '57014' })
    unlock.resolve()
    await await locking.promise
    expect(await pollWith(client, nothing, at(leaseSeconds))).toMatchObject({
      claimed: 1,
      succeeded: 1,
      repaired: 1,
    })
    expect(await found()).toEqual({ ...nothingLeft, effects: [] })
    expect(id).not.toBe('')
  })
})

test('runs a handler again whose transaction was the victim of a deadlock', async () => {
  await sql`create table account (id integer primary key)`
  await sql`insert into account (id) values (1), (2)`
  const ids = await publishMany(sql, [transactional({ fails: false }), transactional({ fails: false })])
  let runs = 0
  let other: Promise<unknown> = Promise.resolve()
  const report = await pollWith(open(), async (tx, eventId) => {
    if (eventId !== ids[1] || runs++ > 0) return
    const lock = (by: Sql | TransactionSql, id: number) =>
      by`select 1 from account where id = ${id} for update`
    await tx`set local deadlock_timeout = '100ms'` // the other session's is a minute: this one is the victim
    await lock(tx, 1)
    other = sql.begin(async (theirs) => {
      await theirs`set local deadlock_timeout = '60s'`
      await lock(theirs, 2)
      await lock(theirs, 1)
    })
    await expect
      .poll(
        () =>
          sql`select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
      )
      .toHaveLength(1)
    await lock(tx, 2)
  })
  await other
  expect(report).toMatchObject({ succeeded: 2, retried: 0 })
  expect(runs).toBe(2)
  expect(await found()).toEqual({ ...nothingLeft, effects: ids })
})

test.for([1, 2])(
  'runs a handler again after a serialization failure, once (failures: %i)',
  async (failures) => {
    const [id = '', beside = ''] = await publishMany(sql, [
      transactional({ fails: false }),
      transactional({ fails: false }),
    ])
    let runs = 0
    const report = await pollWith(open(), async (tx, eventId) => {
      if (eventId !== id || runs++ >= failures) return
      await tx`do $$ begin raise exception 'as told' using errcode = 'serialization_failure'; end $$`
    })
    expect(runs).toBe(2)
    const isCharged = failures > 1
    expect(report).toMatchObject({ succeeded: isCharged ? 1 : 2, retried: isCharged ? 1 : 0 })
    expect(await found()).toMatchObject({
      effects: isCharged ? [beside] : [id, beside],
      attempts: isCharged ? [`${id} 1 PostgresError`] : [],
    })
  },
)

test("keeps no lock for long: the limits of a poller's session", async () => {
  const [settings] = await open()`
    select
      current_setting('statement_timeout') as "statement",
      current_setting('idle_in_transaction_session_timeout') as "idleInTransaction",
      current_setting('tcp_keepalives_idle') as "keepalivesIdle",
      current_setting('tcp_keepalives_interval') as "keepalivesInterval",
      current_setting('tcp_keepalives_count') as "keepalivesCount",
      current_setting('tcp_user_timeout') as "userTimeout"`
  expect(settings).toEqual({
    statement: '1min',
    idleInTransaction: '30s',
    keepalivesIdle: '10',
    keepalivesInterval: '5',
    keepalivesCount: '3',
    userTimeout: '25000',
  })
})

test('is not held up by events that somebody removed by hand', async () => {
  const client = open()
  const claim = (seconds: number) => sql`
    select batch_id from loopless.claim(${at(seconds)}, gen_random_uuid(), ${at(seconds + 1)}, 100, 1000000, 100, null)`
  // one that runs alone, one that is due, and a part that was given back
  await publishMany(sql, [plain({ fails: false })])
  await claim(0)
  await claim(1)
  await publishMany(sql, [plain({ fails: false })], { dueAt: at(0) })
  await publishMany(sql, [plain({ fails: false })])
  const signal = AbortSignal.abort()
  expect(await poll(at(2), { sql: client, handlers, signal, log: () => {} })).toMatchObject({ released: 2 })
  expect(await found()).toMatchObject({ open: 1, deliveries: 2 })
  await sql`delete from loopless.event`
  const [id = ''] = await publishMany(sql, [transactional({ fails: false })])
  await pollRest(client)
  expect(await found()).toEqual({ ...nothingLeft, effects: [id] })
})

test.each(['that was given back', 'whose end was given back'])(
  'goes on behind a batch %s, of which somebody removed some by hand',
  async (what) => {
    const client = open()
    const ids = await publishMany(
      sql,
      [1, 2, 3, 4].map(() => transactional({ fails: false })),
    )
    const [claimed] = await sql`
      select batch_id as id, ids from loopless.claim(
        ${at(0)}, '00000000-0000-4000-8000-000000000001', ${at(60)}, 100, 1000000, 100, null)`
    expect(claimed).toMatchObject({ ids: ids.join() })
    const [event] = await sql`select xid::text as xid from loopless.event limit 1`
    const isWhole = what === 'that was given back'
    const removed = isWhole ? ids[1] : ids[0]
    await sql`delete from loopless.event where id = ${removed ?? ''}`
    const outcome = isWhole ? { reopen: true } : { split: { xid: event?.['xid'], id: ids[1] } }
    await sql`
      select loopless.settle(
        ${at(1)}, '00000000-0000-4000-8000-000000000001', ${claimed?.['id']}, ${JSON.stringify(outcome)}::text::json)`
    const [next = ''] = await publishMany(sql, [transactional({ fails: false })])
    await pollRest(client)
    const left = isWhole ? [ids[0], ids[2], ids[3], next] : [ids[2], ids[3], next]
    expect(await found()).toEqual({ ...nothingLeft, effects: left })
  },
)

async function found(): Promise<unknown> {
  const [row] = await sql`
    select
      array(select e.event_id::text from effect e order by e.event_id) as effects,
      array(select event_id || ' ' || attempt || ' ' || error_class from loopless.attempt order by event_id, id) as attempts,
      (select count(*)::int from loopless.batch where settled_at is null) as open,
      (select count(*)::int from loopless.delivery) as deliveries,
      (select count(*)::int from loopless.dead_letter) as dead`
  return row
}
