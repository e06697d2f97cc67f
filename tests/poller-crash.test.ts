import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeEach, expect, onTestFinished, test } from 'vitest'
import {
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  type OutgoingEvent,
  type PollReport,
  poll,
  publishMany,
} from '../src/index.ts'
import { testDatabase } from './support/database.ts'
import type { CrashPayload, PollClientMessage, PollClientOptions } from './support/poll-client.ts'
import { type ProxyMessage, startProxy, type Verdict } from './support/proxy.ts'
import { statementReader } from './support/statements.ts'

// A poller is a process here, and killed at the boundaries of its stages. What it leaves must be as if it had never
// begun, or as if it had ended well.

const { url, sql } = await testDatabase()
await sql`create table effect (event_id bigint not null)`
const poller = connect(url)
const proxy = await startProxy(url)
afterAll(() => Promise.all([proxy.close(), poller.end()]))
beforeEach(async () => {
  proxy.judge(() => 'forward')
  await sql`truncate loopless.event, loopless.delivery, loopless.attempt, loopless.dead_letter, effect`
  await sql`update loopless.batch set settled_at = coalesce(settled_at, now()), lease = null, claimed_at = null`
})

const began = Date.UTC(2026, 0, 1)
const at = (seconds: number): Date => new Date(began + seconds * 1000)
/** The lease of a poll at second 0: 60 s, and a margin of 15. */
const leaseSeconds = 75

const plain = defineEvent<CrashPayload>('crash.plain')
const transactional = defineEvent<CrashPayload>('crash.transactional')

/** Where a poller is stopped before it is killed; the promise is resolved when it is there. */
interface Boundary {
  judge?: (message: ProxyMessage) => Verdict
  readonly reached: Promise<unknown>
}

/** The statement does not reach the server: the first one with this text, or a later one. */
function beforeSending(text: string, place = 1): Boundary {
  const { promise: reached, resolve } = Promise.withResolvers<void>()
  const isNext = whenSent(text, place)
  const judge = (message: ProxyMessage): Verdict => {
    if (!isNext(message)) return 'forward'
    resolve()
    return 'hold'
  }
  return { judge, reached }
}

/** The statement is carried out and committed, and its answer does not reach the poller. */
function beforeAnswer(text: string, isCommitted: () => Promise<boolean>, place = 1): Boundary {
  const { promise, resolve } = Promise.withResolvers<void>()
  const isNext = whenSent(text, place)
  let isSent = false
  const judge = (message: ProxyMessage): Verdict => {
    if (isNext(message)) isSent = true
    if (message.from === 'client' || message.type !== 'C' || !isSent) return 'forward'
    resolve()
    return 'hold'
  }
  return { judge, reached: promise.then(() => until(isCommitted)) }
}

/** True for the message that runs a statement with this text for the n-th time. */
function whenSent(text: string, place: number): (message: ProxyMessage) => boolean {
  const read = statementReader()
  let count = 0
  return (message) => (read(message)?.includes(text) ?? false) && ++count === place
}

const isLeased = async (): Promise<boolean> =>
  (await sql`select 1 from loopless.batch where lease is not null and settled_at is null`).length > 0
const isSettled = async (): Promise<boolean> => !(await isLeased())
const isClaimed = (count: number) => async (): Promise<boolean> => {
  const { settled, held } = await batches()
  return settled + held === count
}

test.for<
  [string, { define: typeof plain; isBlocking?: boolean; isSettled?: boolean; boundary?: () => Boundary }]
>([
  ['after its claim', { define: plain, boundary: () => beforeAnswer('loopless.lease(', isLeased) }],
  [
    'before it reads what it claimed',
    { define: plain, boundary: () => beforeSending('loopless.read_leased(') },
  ],
  ['in a plain handler', { define: plain, isBlocking: true }],
  ['in a transactional handler', { define: transactional, isBlocking: true }],
  ['before it settles a batch', { define: plain, boundary: () => beforeSending('loopless.settle(') }],
  ['before it settles a group', { define: transactional, boundary: () => beforeSending('loopless.settle(') }],
  ['before it commits a group', { define: transactional, boundary: () => beforeSending('commit') }],
  [
    'after it settled a batch',
    { define: plain, isSettled: true, boundary: () => beforeAnswer('loopless.settle(', isSettled) },
  ],
  [
    'after it committed a group',
    { define: transactional, isSettled: true, boundary: () => beforeAnswer('commit', isSettled) },
  ],
])('loses and repeats nothing of a poller killed %s', async ([, stage]) => {
  const conducts = ['succeed', stage.isBlocking ? 'block' : 'succeed', 'succeed'] as const
  const ids = await publishMany(
    sql,
    conducts.map((conduct) => stage.define({ conduct })),
  )
  const boundary = stage.boundary?.()
  if (boundary?.judge) proxy.judge(boundary.judge)
  const client = startClient({ url: proxy.url, now: at(0).toISOString() })
  await (boundary?.reached ?? client.until((calls) => calls.includes(ids[1] ?? '')))
  await client.kill()

  const early = await pollAll(at(leaseSeconds - 1))
  expect(early).toEqual({ claimed: 0, repaired: 0, calls: [] })
  const late = await pollAll(at(leaseSeconds))
  expect(late).toEqual(stage.isSettled ? early : { claimed: 3, repaired: 3, calls: ids })
  expect(await effects()).toEqual(stage.define === transactional ? ids : [])
  expect(await leftovers()).toEqual({ open: 0, deliveries: 0, attempts: 0, dead: 0 })
})

// The settlement of the second batch and the claim of the third are the first that are sent together.
test.for<[string, { boundary: () => Boundary; settled: number; held: number }]>([
  ['before either is sent', { boundary: () => beforeSending('loopless.settle(', 2), settled: 1, held: 1 }],
  ['between the two', { boundary: () => beforeSending('loopless.lease(', 3), settled: 2, held: 0 }],
  ['after both', { boundary: () => beforeAnswer('loopless.settle(', isClaimed(3), 2), settled: 2, held: 1 }],
])('repeats one batch at most of a drain killed while it settles and claims, %s', async ([, stage]) => {
  const ids = await publishMany(
    sql,
    Array.from({ length: 8 }, () => plain({ conduct: 'succeed' })),
  )
  const { judge, reached } = stage.boundary()
  if (judge) proxy.judge(judge)
  const client = startClient({ url: proxy.url, now: at(0).toISOString(), drainsBy: 2 })
  await reached
  await until(async () => (await batches()).settled === stage.settled)
  await client.kill()

  expect(client.calls).toEqual(ids.slice(0, 4))
  expect(await batches()).toEqual({ settled: stage.settled, held: stage.held })
  const held = ids.splice(2 * stage.settled, 2 * stage.held)
  const free = ids.slice(2 * stage.settled)
  expect(await pollAll(at(leaseSeconds - 1))).toEqual({ claimed: free.length, repaired: 0, calls: free })
  const late = await pollAll(at(leaseSeconds))
  expect(late).toEqual({ claimed: held.length, repaired: held.length, calls: held })
  expect(await leftovers()).toEqual({ open: 0, deliveries: 0, attempts: 0, dead: 0 })
})

test('charges an event whose poller was killed while it ran it alone, and runs it again after the delay', async () => {
  const [id] = await publishMany(sql, [plain({ conduct: 'block' })])
  for (const seconds of [0, leaseSeconds]) {
    const client = startClient({ url, now: at(seconds).toISOString() })
    await client.until((calls) => calls.length === 1)
    await client.kill()
  }

  const found = at(2 * leaseSeconds)
  expect(await pollAll(found)).toEqual({ claimed: 1, repaired: 0, calls: [] })
  expect(await attempts()).toEqual([{ event_id: id, attempt: 1, error_class: 'PollerDiedError' }])
  expect((await pollAll(new Date(found.getTime() + 59_999))).calls).toEqual([])
  expect((await pollAll(new Date(found.getTime() + 60_000))).calls).toEqual([id])
  expect(await leftovers()).toEqual({ open: 0, deliveries: 0, attempts: 1, dead: 0 })
})

test('lets go of what a frozen poller held in a transaction, and refuses it when it wakes', async () => {
  const [id] = await publishMany(sql, [transactional({ conduct: 'freeze' })])
  const client = startClient({ url, now: at(0).toISOString(), idleInTransactionTimeoutMs: 300 })
  await client.until((calls) => calls.length === 1)
  await until(async () => (await sessions()) === 0)
  expect(await pollAll(at(leaseSeconds))).toEqual({ claimed: 1, repaired: 1, calls: [id] })

  client.process.kill('SIGCONT')
  expect(await client.exited()).toBe('DatabaseError')
  expect(await effects()).toEqual([id])
  expect(await leftovers()).toEqual({ open: 0, deliveries: 0, attempts: 0, dead: 0 })
})

test.for<['exit' | 'kill', typeof plain]>([
  ['exit', plain],
  ['kill', transactional],
])('finds the one event of 100 that ends every process that runs it (%s)', async ([conduct, define]) => {
  const events = Array.from({ length: 100 }, (_, index): OutgoingEvent => {
    if (index === 50) return define({ conduct })
    return (index % 2 ? plain : transactional)({ conduct: 'succeed' })
  })
  const ids = await publishMany(sql, events)
  const poison = ids[50] ?? ''
  const called: string[] = []
  const dieAt = async (seconds: number): Promise<void> => {
    const client = startClient({ url, now: at(seconds).toISOString() })
    expect(await client.exited()).toBe('crashed')
    called.push(...client.calls)
    await until(async () => (await sessions()) === 0)
  }
  await dieAt(0) // among the others: nobody is charged
  let seconds = leaseSeconds
  for (const attempt of [1, 2, 3]) {
    await dieAt(seconds) // alone
    seconds += leaseSeconds
    called.push(...(await pollAll(at(seconds))).calls)
    seconds += 60 * 2 ** (attempt - 1)
  }

  const died = { event_id: poison, error_class: 'PollerDiedError' }
  expect(await attempts()).toEqual([1, 2, 3].map((attempt) => ({ ...died, attempt })))
  expect(await sql`select event_id, reason, attempts from loopless.dead_letter`).toEqual([
    { event_id: poison, reason: 'exhausted', attempts: 3 },
  ])
  expect(await leftovers()).toEqual({ open: 0, deliveries: 0, attempts: 3, dead: 1 })
  expect(await effects()).toEqual(ids.filter((_, index) => index % 2 === 0 && index !== 50))
  expect(new Set(called)).toEqual(new Set(ids))
})

interface Client {
  readonly process: ChildProcess
  /** The events that its handlers were called with. */
  readonly calls: ReadonlyArray<string>
  /** Waits until its handlers were called with these events. */
  until(isThere: (calls: ReadonlyArray<string>) => boolean): Promise<void>
  /** How it ended: by itself, with the error of its last poll, or by a crash. */
  exited(): Promise<string>
  /** Kills it, and waits until the server has noticed. */
  kill(): Promise<void>
}

function startClient(options: PollClientOptions): Client {
  const path = fileURLToPath(new URL('support/poll-client.ts', import.meta.url))
  const child = fork(path, [JSON.stringify(options)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  onTestFinished(() => void child.kill('SIGKILL'))
  const exit = Promise.all([once(child, 'exit'), once(child, 'disconnect')])
  const calls: string[] = []
  let end = 'crashed'
  child.on('message', (message: PollClientMessage) => {
    if ('called' in message) calls.push(message.called)
    else end = 'failed' in message ? message.failed : 'ended'
  })
  return {
    process: child,
    calls,
    until: (isThere) => until(async () => isThere(calls)),
    exited: async () => {
      await exit
      return end
    },
    kill: async () => {
      child.kill('SIGKILL')
      await exit
      await until(async () => (await sessions()) === 0)
    },
  }
}

/** Polls as a well behaved poller until nothing is claimed. */
async function pollAll(now: Date): Promise<{ claimed: number; repaired: number; calls: string[] }> {
  const calls: string[] = []
  const options = { maxAttempts: 3, baseDelaySeconds: 60, jitter: 0 }
  const handlers = defineHandlers({
    plain: defineHandler(plain, options, ({ id }) => {
      calls.push(id)
    }),
    transactional: defineHandler(
      transactional,
      { ...options, transactional: true },
      async ({ id }, { tx }) => {
        calls.push(id)
        await tx`insert into effect (event_id) values (${id})`
      },
    ),
  })
  const sum = { claimed: 0, repaired: 0, calls }
  let report: PollReport
  do {
    report = await poll(now, { sql: poller, handlers })
    sum.claimed += report.claimed
    sum.repaired += report.repaired
  } while (report.claimed > 0)
  return sum
}

async function effects(): Promise<string[]> {
  return (await sql<{ id: string }[]>`select event_id as id from effect order by event_id`).map(
    ({ id }) => id,
  )
}

/** What a drain by twos has claimed. */
async function batches(): Promise<{ settled: number; held: number }> {
  const [row] = await sql<{ settled: number; held: number }[]>`
    select
      count(*) filter (where settled_at is not null)::int as settled,
      count(*) filter (where settled_at is null and lease is not null)::int as held
    from loopless.batch
    where claimed_at = ${at(0)} and size = 2`
  return row ?? { settled: 0, held: 0 }
}

async function attempts(): Promise<unknown[]> {
  return [...(await sql`select event_id, attempt, error_class from loopless.attempt order by id`)]
}

async function leftovers(): Promise<unknown> {
  const [row] = await sql`
    select
      (select count(*)::int from loopless.batch where settled_at is null) as open,
      (select count(*)::int from loopless.delivery) as deliveries,
      (select count(*)::int from loopless.attempt) as attempts,
      (select count(*)::int from loopless.dead_letter) as dead`
  return row
}

/** Of clients, as the server sees them. */
async function sessions(): Promise<number> {
  return (await sql`select 1 from pg_stat_activity where application_name = 'poll-client'`).length
}

/** Looks again and again: another process is under way. */
async function until(isThere: () => Promise<boolean>): Promise<void> {
  const giveUpMs = performance.now() + 10_000
  while (!(await isThere())) {
    if (performance.now() > giveUpMs) throw new Error('It did not happen within 10 s.')
    await sleep(5)
  }
}
