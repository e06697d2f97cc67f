import { afterAll, beforeEach, expect, test } from 'vitest'
import {
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  LooplessError,
  type OutgoingEvent,
  type PollReport,
  poll,
  publishMany,
  type Sql,
} from '../src/index.ts'
import { testDatabase } from './support/database.ts'
import { type ProxyMessage, startProxy, type Verdict } from './support/proxy.ts'
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

/** Polls over a connection that is lost at its n-th message; undefined when the poll had fewer. */
async function pollWithLoss(client: Sql, n: number, loss: Loss): Promise<'ended' | 'refused' | undefined> {
  let count = 0
  proxy.judge((message) => {
    if (isBoundary(message)) count++
    return count < n ? 'forward' : loss(message, count > n)
  })
  const options = { sql: client, handlers, log: () => {} }
  const outcome = await within(10_000, poll(at(0), options)).then(
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

/** Each way at each message under torture; in `npm test` the ways take turns, and the longer poll loses every third. */
const ways = Object.keys(losses)
const turns = tortureSeconds
  ? ways
  : ['lost once', 'lost while the server works', 'lost once', 'lost while the server works', 'lost for good']

test.for<[string, number, ReadonlyArray<OutgoingEvent>]>([
  ['plain handlers', 1, [plain({ fails: false }), plain({ fails: true })]],
  [
    'plain and transactional handlers',
    tortureSeconds ? 1 : 3,
    [
      plain({ fails: false }),
      plain({ fails: true }),
      transactional({ fails: false }),
      transactional({ fails: true }),
    ],
  ],
])(
  'loses and repeats nothing when its connection is lost at any message of a poll with %s',
  async ([, step, events]) => {
    const outcomes = { ended: 0, refused: 0 }
    for (let round = 0; round < (tortureSeconds ? ways.length : 1); round++) {
      for (let n = 1; ; n += step) {
        const name = turns[((n - 1) / step + round) % turns.length] ?? ''
        await clear()
        const ids = await publishMany(sql, events)
        const client = connect(proxy.url)
        const outcome = await pollWithLoss(client, n, losses[name] as Loss)
        await pollRest(client)
        await client.end({ timeout: 1 })
        const [, failing, , failingEffect] = ids
        expect(await found(), `${name} at message ${n}`).toEqual({
          effects: ids.slice(2),
          attempts: [failing, failingEffect].filter((id) => id !== undefined).map((id) => `${id} 1 Error`),
          open: 0,
          deliveries: 0,
          dead: 0,
        })
        expect(calls, `${name} at message ${n}`).toEqual(expect.arrayContaining(ids.slice(0, 2)))
        if (outcome === undefined) break
        outcomes[outcome]++
      }
    }
    expect(outcomes.refused).toBeGreaterThan(20)
    if (tortureSeconds) console.log(outcomes)
  },
  300_000,
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
