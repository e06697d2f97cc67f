import { beforeEach, describe, expect, it, vi } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { type DrainOptions, type DrainReport, drain } from './drain.ts'
import { InvalidOptionError } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler, type HandlerOptions } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { publish } from './publish.ts'
import { register } from './register.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql, poller, connect } = bus

const counted = defineEvent<{ n: number }>('counted')

/** Milliseconds that handlers have let pass. */
let passedMs = 0
let startedMs = 0
const realNow = performance.now.bind(performance)
vi.spyOn(performance, 'now').mockImplementation(() => realNow() + passedMs)

beforeEach(() => {
  passedMs = 0
  startedMs = performance.now()
})

/** Begins each test at `now`, and goes on with the time that passes. */
function clock(): Date {
  return new Date(now.getTime() + Math.floor(performance.now() - startedMs))
}

function drainWith(
  handlers: Readonly<Record<string, Handler>>,
  options: Partial<DrainOptions> = {},
): Promise<DrainReport> {
  return drain({ sql: poller, handlers: defineHandlers(handlers), clock, deadline: later(60), ...options })
}

/** A handler of single events, one at a time, that takes its time. */
function taking(ms: number, numbers: number[] = [], options: SingleOptions = {}): Handler {
  return defineHandler(counted, { concurrency: 1, ...options }, async ({ payload }) => {
    numbers.push(payload.n)
    passedMs += ms
  })
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index + 1)
}

/** Sizes of the slices of the log that were claimed, in order. */
async function claims(): Promise<number[]> {
  const rows = await sql<{ size: number }[]>`select size from loopless.batch where size > 0 order by id`
  return rows.map(({ size }) => size)
}

describe('a drain', () => {
  it('polls until nothing is due, and reports the sum', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(120))
    await bus.publish('unheard', 0)
    await publish(sql, counted({ n: 121 }), { dueAt: now })
    await publish(sql, counted({ n: 122 }), { dueAt: later(3_600) })
    const report = await drainWith({ h: taking(0, numbers) })
    expect(report).toMatchObject({
      claimed: 122,
      succeeded: 121,
      retried: 0,
      dead: 0,
      unhandled: 1,
      released: 0,
      repaired: 0,
      leasesLost: 0,
      drained: true,
      nextDueAt: later(3_600),
    })
    expect(report.polls).toBeGreaterThan(2)
    expect(report.ms.claim).toBeGreaterThan(0)
    expect(numbers.toSorted((a, b) => a - b)).toEqual(range(121))
  })

  it('of an empty bus is one poll', async () => {
    expect(await drainWith({})).toMatchObject({ polls: 1, claimed: 0, drained: true, nextDueAt: null })
  })

  it('goes on with what its own polls made due', async () => {
    const numbers: number[] = []
    const followed = defineEvent<{ n: number }>('followed')
    await bus.publish('counted', 1)
    const h = defineHandler(counted, { transactional: true }, (_event, { tx }) =>
      publish(tx, followed({ n: 2 })),
    )
    const next = defineHandler(
      followed,
      { baseDelaySeconds: 0, maxAttempts: 4 },
      ({ payload }, { attempt }) => {
        numbers.push(payload.n * 10 + attempt)
        throw new Error('no')
      },
    )
    expect(await drainWith({ h, next })).toMatchObject({
      succeeded: 1,
      retried: 3,
      dead: 1,
      drained: true,
      nextDueAt: null,
    })
    expect(numbers).toEqual([21, 22, 23, 24])
  })

  it('reads the clock once a poll: handlers of one poll see one now', async () => {
    const seen = new Set<number>()
    await bus.publish('counted', ...range(3))
    const h = defineHandler(counted, { concurrency: 1 }, async (_event, context) => {
      seen.add(context.now.getTime())
      passedMs += 100
    })
    await drainWith({ h })
    expect(seen.size).toBe(1)
  })

  it('beside others handles each event once', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(600))
    const h = defineHandler(counted, {}, ({ payload }) => void numbers.push(payload.n))
    await Promise.all([1, 2, 3].map(() => drainWith({ h }, { sql: connect({ max: 1 }) })))
    expect(numbers.toSorted((a, b) => a - b)).toEqual(range(600))
  })

  it('refuses handlers that are no set', async () => {
    await expect(drainWith({}, { handlers: { h: taking(0) } as never })).rejects.toThrow(
      new InvalidOptionError(
        'Expected handlers to be what defineHandlers made, got object: write handlers: defineHandlers({ … }).',
      ),
    )
  })
})

describe('the size of a claim', () => {
  it('grows from small to its limit while polls are quick', async () => {
    await bus.publish('counted', ...range(700))
    await drainWith({ h: taking(0) }, { limits: { events: 300 } })
    expect(await claims()).toEqual([50, 100, 200, 300, 50])
  })

  it('is never above its limit', async () => {
    await bus.publish('counted', ...range(25))
    await drainWith({ h: taking(0) }, { limits: { events: 10 } })
    expect(await claims()).toEqual([10, 10, 5])
  })

  it('stays where polls take their time, and shrinks where they are slow, down to one', async () => {
    await bus.publish('counted', ...range(50), ...range(50))
    await drainWith({ h: taking(8) })
    expect((await claims()).slice(0, 2)).toEqual([50, 50])

    await bus.publish('counted', ...range(16))
    await drainWith({ h: taking(1_200) }, { limits: { events: 8 }, deadline: later(600) })
    expect((await claims()).slice(2)).toEqual([8, 4, 2, 1, 1])
  })
})

describe('the deadline', () => {
  it('is not passed: what would end after it is not started, and is free for others at once', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(20))
    const deadline = later(10)
    const report = await drainWith({ h: taking(1_000, numbers) }, { deadline })
    expect(clock().getTime()).toBeLessThanOrEqual(deadline.getTime())
    expect(report).toMatchObject({ polls: 1, succeeded: 9, released: 11, drained: false })
    expect(await bus.openBatches()).toMatchObject([{ size: 11, leased: false }])
    expect(await bus.attempts()).toEqual([])
    await drainWith({ h: taking(0, numbers) }, { deadline: later(60) })
    expect(numbers).toEqual(range(20))
  })

  it('is told from how long handlers took lately', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(60))
    const deadline = later(10)
    const h = defineHandler(counted, { concurrency: 1 }, async ({ payload }) => {
      numbers.push(payload.n)
      passedMs += payload.n <= 50 ? 120 : 900
    })
    const report = await drainWith({ h }, { deadline })
    expect(clock().getTime()).toBeLessThanOrEqual(deadline.getTime())
    expect(report).toMatchObject({ polls: 2, drained: false })
    expect(numbers.length).toBeGreaterThan(50)
    expect(report.succeeded + report.released).toBe(report.claimed)
  })

  it('that is near or over leaves no time for a poll', async () => {
    await bus.publish('counted', 1)
    for (const deadline of [later(0.005), now, later(-60)])
      expect(await drainWith({ h: taking(0) }, { deadline })).toMatchObject({
        polls: 0,
        claimed: 0,
        drained: false,
      })
    expect(await bus.openBatches()).toEqual([])
  })

  it('ends a handler that never does, and charges it', async () => {
    const began = realNow()
    await bus.publish('counted', 1)
    const h = defineHandler(counted, { concurrency: 1 }, () => new Promise(() => {}))
    const report = await drainWith({ h }, { deadline: later(0.3) })
    expect(report).toMatchObject({ retried: 1 })
    expect(realNow() - began).toBeLessThan(5_000)
  })

  it('ends a statement that never does', async () => {
    const began = realNow()
    await bus.publish('counted', 1)
    const h = defineHandler(counted, { transactional: true }, (_event, { tx }) => tx`select pg_sleep(60)`)
    expect(await drainWith({ h }, { deadline: later(0.5) })).toMatchObject({ retried: 1 })
    expect(realNow() - began).toBeLessThan(5_000)
  })

  it('bounds the lease', async () => {
    const leases: unknown[] = []
    await bus.publish('counted', 1)
    const h = defineHandler(counted, {}, async () => void leases.push(...(await bus.openBatches())))
    const fixed = (): Date => now
    await drainWith({ h }, { clock: fixed, deadline: later(31), limits: { leaseMarginSeconds: 5 } })
    expect(leases).toMatchObject([{ until: later(35) }])
  })

  it('may be further than a poll may take', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(8))
    const report = await drainWith(
      { h: taking(1_000, numbers) },
      { deadline: later(600), limits: { seconds: 5 } },
    )
    expect(report).toMatchObject({ succeeded: 8, drained: true })
    expect(report.released).toBeGreaterThan(0)
    expect(numbers).toEqual(range(8))
  })

  it.each([undefined, '2030-01-01', new Date('no')])('must be a valid Date, not %s', async (deadline) => {
    await expect(drainWith({}, { deadline: deadline as never })).rejects.toThrow(
      new InvalidOptionError(`Expected deadline to be a valid Date, got ${String(deadline)}.`),
    )
  })
})

describe('the signal', () => {
  it('stops a drain: what runs may end, the rest is given back', async () => {
    const controller = new AbortController()
    const numbers: number[] = []
    await bus.publish('counted', ...range(5))
    const h = defineHandler(counted, { concurrency: 1 }, async ({ payload }, { signal }) => {
      if (payload.n === 2) controller.abort()
      await bus.deliveries()
      expect(signal.aborted).toBe(false)
      numbers.push(payload.n)
    })
    expect(await drainWith({ h }, { signal: controller.signal })).toMatchObject({
      polls: 1,
      succeeded: 2,
      released: 3,
      drained: false,
    })
    expect(numbers).toEqual([1, 2])
    expect(await bus.openBatches()).toMatchObject([{ size: 3, leased: false }])
  })

  it('aborted before lets nothing begin', async () => {
    await bus.publish('counted', 1)
    expect(await drainWith({ h: taking(0) }, { signal: AbortSignal.abort() })).toMatchObject({
      polls: 0,
      drained: false,
    })
  })
})

describe('what can not be done', () => {
  it('because another poller has it ends the drain, which does not wait for it', async () => {
    await bus.publish('counted', 1, 2)
    await sql`
      insert into loopless.delivery (event_xid, event_id, reason, due_at, alone)
      select xid, id, 'recovered', ${now}, true from loopless.event`
    const holder = await connect({ max: 1 }).reserve()
    await holder`begin`
    await holder`select from loopless.delivery for update`
    expect(await drainWith({ h: taking(0) })).toMatchObject({
      polls: 2,
      claimed: 2,
      drained: false,
      nextDueAt: now,
    })
    await holder`rollback`
    holder.release()
    expect(await drainWith({ h: taking(0) })).toMatchObject({ claimed: 2, drained: true, nextDueAt: null })
  })

  it('because the limits forbid it ends the drain', async () => {
    await bus.publish('counted', 1)
    await sql`
      insert into loopless.delivery (event_xid, event_id, reason, due_at, alone)
      select xid, id, 'recovered', ${now}, true from loopless.event`
    expect(await drainWith({ h: taking(0) }, { limits: { alone: 0 } })).toMatchObject({
      claimed: 1,
      drained: false,
    })
  })

  it('because the lease was lost is counted, and the drain goes on', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(60))
    const h = defineHandler(counted, { concurrency: 1 }, async ({ payload }) => {
      numbers.push(payload.n)
      if (payload.n === 1)
        await sql`update loopless.batch set lease = gen_random_uuid() where lease is not null and settled_at is null`
    })
    const report = await drainWith({ h })
    expect(report).toMatchObject({ leasesLost: 1, claimed: 10, succeeded: 10 })
    expect(numbers).toEqual(range(60))
  })

  it('because other handlers are registered is an error', async () => {
    await register(sql, defineHandlers({ other: taking(0) }), now)
    await expect(drainWith({ h: taking(0) })).rejects.toMatchObject({ code: 'HANDLER_SET_NOT_REGISTERED' })
  })
})
