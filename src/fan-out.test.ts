import { setTimeout as sleep } from 'node:timers/promises'
import { beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { claim, release } from './claim.ts'
import { countOtherPollers } from './count-pollers.ts'
import type { Sql } from './db/client.ts'
import { drain } from './drain.ts'
import { defineEvent } from './event.ts'
import { help, openFanOut } from './fan-out.ts'
import { defineHandler } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { beginWaking, goIdle, markAwake } from './idle.ts'

const bus = await testBus()
const { sql, poller, connect, isAwake } = bus
const numbers = (count: number): number[] => Array.from({ length: count }, (_, n) => n)
const limits = { now, until: later(75), events: 10, bytes: 1_000_000, deliveries: 10, handlerSet: '' }
const slow = defineHandlers({
  slow: defineHandler(defineEvent('happened'), { concurrency: 1 }, () => sleep(10)),
})

it('never has more pollers at work than allowed, however many rounds a backlog takes', async () => {
  await bus.publish('happened', ...numbers(600))
  const helping: Promise<unknown>[] = []
  let atWork = 1
  let most = 1
  const runHelper = async (): Promise<void> => {
    const client = connect({ max: 1 })
    most = Math.max(most, ++atWork)
    await drain({
      sql: client,
      handlers: slow,
      clock: () => new Date(),
      deadline: new Date(Date.now() + 60_000),
    })
    atWork--
  }
  const fanOut = openFanOut({
    sql: poller,
    clock: () => new Date(),
    maxPollers: 3,
    helperBacklog: 20,
    helpAgainMs: 300,
    invoke: async () => {
      helping.push(runHelper())
    },
  })
  const look = vi.fn(fanOut.look)
  await drain({
    sql: poller,
    handlers: slow,
    clock: () => new Date(),
    deadline: new Date(Date.now() + 60_000),
    onPoll: look,
  })
  await Promise.all(helping)
  expect(look.mock.calls.length).toBeGreaterThan(3)
  expect({ most, helpers: await fanOut.end() }).toEqual({ most: 3, helpers: 2 })
})

it('invokes as many as are missing when some are at work', async () => {
  await bus.publish('happened', ...numbers(100))
  const other = connect({ max: 1 })
  const { token } = await claim(other, limits)
  let invoked = 0
  const lookOnce = async (): Promise<number> => {
    invoked = 0
    const options = { sql: poller, clock: () => now, maxPollers: 3, helperBacklog: 20 }
    const fanOut = openFanOut({ ...options, invoke: async () => void invoked++ })
    await fanOut.look()
    return invoked
  }
  expect(await lookOnce()).toBe(1)
  await claim(poller, limits) // it is one of them itself
  expect(await lookOnce()).toBe(1)
  await claim(connect({ max: 1 }), limits)
  expect(await lookOnce()).toBe(0)
  await release(other, token, now)
})

it('counts again soon when nobody was missing, and later when somebody is on the way', async () => {
  await bus.publish('happened', ...numbers(100))
  await claim(connect({ max: 1 }), limits)
  vi.useFakeTimers({ toFake: ['performance'] })
  onTestFinished(() => void vi.useRealTimers())
  let at = now
  let invoked = 0
  const options = { sql: poller, clock: () => at, maxPollers: 2, helperBacklog: 20 }
  const fanOut = openFanOut({ ...options, invoke: async () => void invoked++ })
  const lookAfter = async (ms: number): Promise<number> => {
    vi.advanceTimersByTime(ms)
    at = new Date(at.getTime() + ms)
    await fanOut.look()
    return invoked
  }
  expect(await lookAfter(0)).toBe(0)
  await sql`update loopless.batch set settled_at = ${now} where lease is not null`
  expect(await lookAfter(1_000)).toBe(1)
  expect(await lookAfter(4_000)).toBe(1)
  expect(await lookAfter(1_000)).toBe(2)
})

it('has a helper end at once when as many are at work as may', async () => {
  await bus.publish('happened', ...numbers(30))
  const others = [connect({ max: 1 }), connect({ max: 1 })]
  for (const one of others) await claim(one, limits)
  const options = { sql: poller, handlers: slow, clock: () => now, deadline: later(60), log: () => {} }
  expect(await help({ ...options, maxPollers: 2 })).toMatchObject({ claimed: 0, polls: 0, drained: false })
  expect(await help({ ...options, maxPollers: 3 })).toMatchObject({ claimed: 10 })
})

describe('a helper whose time ends with something left', () => {
  const invoked: string[] = []
  const helpFor = (ms: number, invoke = async (purpose: string) => void invoked.push(purpose)) => {
    const clock = () => new Date()
    return help({
      sql: poller,
      handlers: slow,
      clock,
      deadline: new Date(Date.now() + ms),
      maxPollers: 2,
      invoke,
    })
  }
  /** A session with the lock that a poller goes idle under. */
  const goingIdle = async () => {
    const session = await connect({ max: 1 }).reserve()
    await session`begin`
    await session`select pg_advisory_xact_lock(1280262992, 4)`
    return {
      async heldUp(count: number, ...locks: number[]) {
        await vi.waitFor(async () => {
          const waiting = await sql`
            select from pg_locks
            where locktype = 'advisory' and objid = any(${locks}::int[]) and not granted
              and database = (select oid from pg_database where datname = current_database())`
          expect(waiting).toHaveLength(count)
        }, 10_000)
      },
      async end(isIdle: boolean) {
        if (isIdle) await session`select loopless.mark_awake(0)`
        await session`commit`
        session.release()
      },
    }
  }
  beforeEach(async () => {
    invoked.length = 0
    await bus.publish('happened', ...numbers(200))
    await goIdle(poller, new Date(), false)
  })

  it('invokes one successor when nobody is awake, and publishers rely on it', async () => {
    expect(await helpFor(100)).toMatchObject({ drained: false })
    expect(invoked).toEqual(['continue'])
    expect(await isAwake()).toBe(true)
    expect(await helpFor(100)).toMatchObject({ drained: false })
    expect(invoked).toEqual(['continue'])
  })

  it('leaves it to the poller that is awake', async () => {
    await markAwake(poller, 60_000)
    expect(await helpFor(100)).toMatchObject({ drained: false })
    expect(invoked).toEqual([])
  })

  it('invokes nobody when nothing is left', async () => {
    expect(await helpFor(60_000)).toMatchObject({ drained: true })
    expect(invoked).toEqual([])
    expect(await isAwake()).toBe(false)
  })

  it('waits for one that is just going idle', async () => {
    await markAwake(poller, 60_000)
    const other = await goingIdle()
    const helping = helpFor(100)
    await other.heldUp(1, 4)
    await other.end(true)
    await helping
    expect(invoked).toEqual(['continue'])
  })

  it('is one of several that end at once who invokes', async () => {
    const other = await goingIdle()
    const asking = [connect({ max: 1 }), connect({ max: 1 })].map((client) => beginWaking(client))
    await other.heldUp(2, 4, 5)
    await other.end(false)
    expect((await Promise.all(asking)).sort()).toEqual([false, true])
  })

  it('says that nobody is awake when its successor is refused', async () => {
    const refuse = () => Promise.reject(new Error('429'))
    expect(await helpFor(100, refuse)).toMatchObject({ drained: false })
    expect(await isAwake()).toBe(false)
  })
})

it('counts who holds deliveries, who is between two polls, and nobody twice', async () => {
  const count = (at = now): Promise<number> => countOtherPollers(poller, at, 10)
  await bus.publish('happened', ...numbers(40))
  expect(await count()).toBe(0)
  const [one, two] = [connect({ max: 1 }), connect({ max: 1 })]
  await claim(one, limits)
  await claim(one, { ...limits, until: later(80) })
  expect(await count()).toBe(1)
  await sql`update loopless.batch set settled_at = ${now} where lease is not null`
  expect(await count(later(0.5))).toBe(1)
  expect(await count(later(1))).toBe(0)
  await sql`
    insert into loopless.delivery (event_xid, event_id, reason, due_at)
    select xid, id, 'released', ${now} from loopless.event order by id limit 20`
  for (const until of [later(75), later(76)]) await claim(two, { ...limits, until, deliveries: 10 })
  await sql`update loopless.batch set settled_at = ${now} where lease is not null`
  expect(await count(later(1))).toBe(1)
  expect(await count(later(77))).toBe(0)
})

it('counts by index, also on a session that planned it while the tables were empty', async () => {
  const session = connect({ max: 1, max_lifetime: null })
  for (let turn = 0; turn < 8; turn++) await countOtherPollers(session, now, 10)
  await sql`
    insert into loopless.batch (
      lease, leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size,
      claimed_at, settled_at)
    select gen_random_uuid(), ${now}, s, s, '0', 0, '0', 0, 0, 0, ${now}, ${now}
    from generate_series(1, 20000) n, pg_current_snapshot() s`
  await sql`
    insert into loopless.delivery (event_xid, event_id, reason, due_at)
    select '1', n, 'released', ${later(60)} from generate_series(1, 20000) n`
  const reads = await session.begin(async (tx) => {
    const within = Object.assign(tx, { begin: tx.savepoint }) as unknown as Sql
    await countOtherPollers(within, later(1), 10)
    const [row] = await tx<{ seq: number; idx: number }[]>`
      select sum(seq_tup_read)::int as seq, sum(idx_tup_fetch)::int as idx from pg_stat_xact_user_tables
      where schemaname = 'loopless' and relname in ('batch', 'delivery')`
    return row
  })
  expect(reads).toEqual({ seq: 0, idx: expect.any(Number) })
  expect(reads?.idx).toBeGreaterThan(10)
  expect(reads?.idx).toBeLessThan(500)
})
