import { describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { claim, claimAlone } from './claim.ts'
import { InvalidOptionError } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler, type HandlerOptions } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import type { ClaimLimits } from './lease.ts'
import type { Limits } from './limits.ts'
import { poll } from './poll.ts'
import { publish } from './publish.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql } = bus

const counted = defineEvent<{ n: number }>('counted')

/** A handler that notes the numbers of the events it gets, and then does something. */
function noting(
  calls: unknown[],
  act: (n: number, attempt: number) => unknown = () => {},
  options: SingleOptions = {},
): Handler {
  return defineHandler(counted, { jitter: 0, ...options }, ({ payload }, { attempt }) => {
    calls.push(payload.n)
    return act(payload.n, attempt)
  })
}

const fail = (): never => {
  throw new Error('no')
}

/** A poller that claims and is never heard of again; its lease ends at `later(75)`, or at 75 s after another time. */
async function dieWithBatch(at = now): Promise<number> {
  return (await claim(sql, limitsOf(at))).items.length
}

/** The same, with a delivery that runs alone. */
async function dieAlone(at: Date): Promise<unknown> {
  return (await claimAlone(sql, limitsOf(at)))?.items[0]?.receive().payload
}

function limitsOf(at: Date): ClaimLimits {
  const until = new Date(at.getTime() + 75_000)
  return { now: at, until, events: 500, bytes: 1_000_000, deliveries: 100, handlerSet: '' }
}

describe('the report', () => {
  it('of a poll that finds nothing says so', async () => {
    expect(await bus.poll({})).toEqual({
      claimed: 0,
      succeeded: 0,
      retried: 0,
      dead: 0,
      unhandled: 0,
      released: 0,
      repaired: 0,
      nextDueAt: null,
      ms: { claim: expect.any(Number), handle: 0, settle: 0 },
    })
  })

  it('counts everything that came of what was claimed', async () => {
    await bus.publish('counted', 1, 2, 3, 4)
    await bus.publish('unheard', 5)
    await publish(sql, counted({ n: 6 }), { dueAt: later(100) })
    const few = noting([], (n) => (n === 1 ? undefined : fail()), { maxAttempts: 1 })
    const many = noting([], (n) => (n === 4 ? fail() : undefined), { baseDelaySeconds: 7 })
    const report = await bus.poll({ few, many })
    expect(report).toMatchObject({
      claimed: 5,
      succeeded: 4,
      retried: 1,
      dead: 3,
      unhandled: 1,
      released: 0,
      repaired: 0,
      nextDueAt: later(7),
    })
    for (const ms of Object.values(report.ms)) expect(ms).toBeGreaterThan(0)
  })

  it('tells when something is due next, be it a delivery or the end of a lease', async () => {
    await publish(sql, counted({ n: 1 }), { dueAt: later(100) })
    expect(await bus.poll({})).toMatchObject({ claimed: 0, nextDueAt: later(100) })
    await bus.publish('counted', 2)
    await dieWithBatch()
    expect(await bus.poll({})).toMatchObject({ claimed: 0, nextDueAt: later(75) })
  })
})

describe('bad arguments', () => {
  it.each([new Date('no'), undefined, '2030-01-01', 0])('are refused: now is %s', async (at) => {
    const polled = poll(at as never, { sql: bus.poller, handlers: defineHandlers({}) })
    await expect(polled).rejects.toThrow(
      new InvalidOptionError(`Expected now to be a valid Date, got ${String(at)}.`),
    )
  })

  it.each([{ count: noting([]) }, 7, null, undefined])('are refused: handlers is %o', async (handlers) => {
    const polled = poll(now, { sql: bus.poller, handlers: handlers as never })
    await expect(polled).rejects.toThrow(/^Expected handlers to be what defineHandlers made, got /)
    await expect(polled).rejects.toBeInstanceOf(InvalidOptionError)
  })

  it.each<[Limits, string]>([
    [{ events: 0 }, 'Expected limits.events to be a whole number of 1–10000, got 0.'],
    [{ events: 10_001 }, 'Expected limits.events to be a whole number of 1–10000, got 10001.'],
    [{ events: 1.5 }, 'Expected limits.events to be a whole number of 1–10000, got 1.5.'],
    [{ bytes: 0 }, 'Expected limits.bytes to be a whole number of 1–1073741824, got 0.'],
    [{ deliveryShare: 0 }, 'Expected limits.deliveryShare to be 0.01–1, got 0.'],
    [{ deliveryShare: 1.1 }, 'Expected limits.deliveryShare to be 0.01–1, got 1.1.'],
    [{ concurrency: 0 }, 'Expected limits.concurrency to be a whole number of 1–1000, got 0.'],
    [{ seconds: 901 }, 'Expected limits.seconds to be 0.01–900, got 901.'],
    [{ seconds: Number.NaN }, 'Expected limits.seconds to be 0.01–900, got NaN.'],
    [{ leaseMarginSeconds: -1 }, 'Expected limits.leaseMarginSeconds to be 0–900, got -1.'],
    [{ alone: '5' as never }, 'Expected limits.alone to be a whole number of 0–1000, got 5.'],
  ])('are refused, and nothing is claimed: %o', async (limits, message) => {
    await bus.publish('counted', 1)
    await expect(bus.poll({}, { limits })).rejects.toThrow(new InvalidOptionError(message))
    expect(await bus.poll({})).toMatchObject({ claimed: 1 })
  })
})

describe('an event that was delayed', () => {
  it('waits until it is due, to the millisecond, and then goes to every handler that matches', async () => {
    const calls: string[] = []
    const on = (name: string, pattern: string): Handler =>
      defineHandler(pattern, { jitter: 0 }, () => {
        calls.push(name)
        if (name === 'b') fail()
      })
    const handlers = { a: on('a', 'counted'), b: on('b', '*'), c: on('c', 'other') }
    const dueAt = new Date('2030-01-01T00:10:00.123Z')
    await publish(sql, counted({ n: 1 }), { dueAt })
    expect(await bus.deliveries()).toEqual([
      { n: 1, handler: null, reason: 'delayed', dueAt, attempt: 0, alone: false, leased: false },
    ])
    const early = new Date('2030-01-01T00:10:00.122Z')
    expect(await bus.poll(handlers, { at: early })).toMatchObject({ claimed: 0, nextDueAt: dueAt })
    const retryAt = new Date(dueAt.getTime() + 15_000)
    expect(await bus.poll(handlers, { at: dueAt })).toMatchObject({
      claimed: 1,
      succeeded: 1,
      retried: 1,
      nextDueAt: retryAt,
    })
    expect(calls).toEqual(['a', 'b'])
    expect(await bus.deliveries()).toEqual([
      { n: 1, handler: 'b', reason: 'retry', dueAt: retryAt, attempt: 1, alone: false, leased: false },
    ])
  })

  it('goes to the handlers that there are when it is due', async () => {
    const calls: number[] = []
    await publish(sql, counted({ n: 1 }), { dueAt: later(60) })
    await bus.poll({})
    await bus.poll({ added: noting(calls) }, { at: later(60) })
    expect(calls).toEqual([1])
  })

  it('until a time that is over is handled in the next poll', async () => {
    const calls: number[] = []
    await publish(sql, counted({ n: 1 }), { dueAt: later(-1) })
    expect(await bus.poll({ h: noting(calls) })).toMatchObject({ claimed: 1, nextDueAt: null })
    expect(calls).toEqual([1])
  })
})

describe('a batch whose poller died', () => {
  it('is left alone as long as its lease lasts', async () => {
    const calls: number[] = []
    await bus.publish('counted', 1, 2)
    await dieWithBatch()
    expect(await bus.poll({ h: noting(calls) }, { at: new Date(later(75).getTime() - 1) })).toMatchObject({
      claimed: 0,
      repaired: 0,
      nextDueAt: later(75),
    })
    expect(await bus.poll({ h: noting(calls) }, { at: later(75) })).toMatchObject({
      claimed: 2,
      repaired: 2,
      succeeded: 2,
    })
    expect(calls).toEqual([1, 2])
  })

  it('runs one event at a time, in order, with nothing beside it, and nobody is charged', async () => {
    const seen: unknown[] = []
    await bus.publish('counted', 1, 2, 3)
    await dieWithBatch()
    await bus.publish('counted', 4)
    const h = defineHandler(counted, {}, async ({ payload }, { attempt }) => {
      const rows = await bus.deliveries()
      seen.push([payload.n, attempt, rows.map(({ n, leased }) => (leased ? `${n} leased` : n))])
    })
    const report = await bus.poll({ h }, { at: later(80) })
    expect(report).toMatchObject({ claimed: 4, succeeded: 4, repaired: 3, retried: 0 })
    expect(seen).toEqual([
      [4, 1, [1, 2, 3]],
      [1, 1, ['1 leased', 2, 3]],
      [2, 1, ['2 leased', 3]],
      [3, 1, ['3 leased']],
    ])
    expect(await bus.attempts()).toEqual([])
    expect(await bus.deliveries()).toEqual([])
  })

  it('has each handler of an event run alone', async () => {
    const seen: unknown[] = []
    await bus.publish('counted', 1)
    await bus.publish('unheard', 2)
    await dieWithBatch()
    const on = (name: string): Handler =>
      defineHandler(counted, {}, async () => {
        const rows = await bus.deliveries()
        seen.push([name, rows.map(({ handler, leased }) => `${handler} ${leased}`)])
      })
    expect(await bus.poll({ a: on('a'), b: on('b') }, { at: later(80) })).toMatchObject({
      succeeded: 2,
      unhandled: 1,
      repaired: 2,
    })
    expect(seen).toEqual([
      ['a', ['a true', 'b false']],
      ['b', ['b true']],
    ])
    expect(await bus.deliveries()).toEqual([])
  })

  it('costs one attempt of the event that kills its poller again, and none of its neighbours’', async () => {
    const calls: unknown[] = []
    const h = noting(calls, (n, attempt) => void calls.push(`${n} attempt ${attempt}`))
    await bus.publish('counted', 1, 2, 3)
    await dieWithBatch()
    await bus.poll({ h }, { at: later(75), limits: { alone: 1 } })
    expect(await dieAlone(later(75))).toEqual({ n: 2 })
    expect(await bus.deliveries()).toMatchObject([
      { n: 2, leased: true, alone: true },
      { n: 3, leased: false },
    ])

    expect(await bus.poll({ h }, { at: later(150) })).toMatchObject({
      claimed: 2,
      retried: 1,
      succeeded: 1,
      nextDueAt: later(165),
    })
    expect(await bus.attempts()).toEqual([
      {
        n: 2,
        handler: 'h',
        attempt: 1,
        beganAt: later(150),
        endedAt: later(150),
        error: 'PollerDiedError',
        message: 'The poller died while it ran handler h with this event alone.',
        stack: expect.any(String),
      },
    ])
    expect(await bus.deliveries()).toEqual([
      { n: 2, handler: 'h', reason: 'retry', dueAt: later(165), attempt: 1, alone: true, leased: false },
    ])
    expect(calls).toEqual([1, '1 attempt 1', 3, '3 attempt 1'])
    await bus.poll({ h }, { at: later(165) })
    expect(calls.slice(4)).toEqual([2, '2 attempt 2'])
  })

  it('again and again ends in the dead letters once the attempts are used up', async () => {
    const calls: number[] = []
    const h = noting(calls, undefined, { maxAttempts: 2, baseDelaySeconds: 10 })
    await bus.publish('counted', 1)
    await dieWithBatch()
    await bus.poll({ h }, { at: later(75), limits: { alone: 0 } })
    await dieAlone(later(75))
    expect(await bus.poll({ h }, { at: later(150) })).toMatchObject({ retried: 1 })
    expect(await dieAlone(later(160))).toEqual({ n: 1 })
    expect(await bus.poll({ h }, { at: later(235) })).toMatchObject({ dead: 1, retried: 0 })
    expect(calls).toEqual([])
    expect(await bus.deadLetters()).toMatchObject([{ n: 1, handler: 'h', reason: 'exhausted', attempts: 2 }])
    expect(await bus.attempts()).toMatchObject([{ attempt: 1 }, { attempt: 2, error: 'PollerDiedError' }])
    expect(await bus.deliveries()).toEqual([])
  })

  it('does not charge an event that waited for several handlers: it had not run yet', async () => {
    const calls: string[] = []
    const on = (name: string): Handler => defineHandler(counted, {}, () => void calls.push(name))
    const handlers = { a: on('a'), b: on('b') }
    await bus.publish('counted', 1)
    await dieWithBatch()
    await bus.poll(handlers, { at: later(75), limits: { alone: 0 } })
    await dieAlone(later(75))
    expect(await bus.poll(handlers, { at: later(150) })).toMatchObject({ succeeded: 2, retried: 0 })
    expect(calls).toEqual(['a', 'b'])
    expect(await bus.attempts()).toEqual([])
  })

  it('has its event run among others again once it failed by itself', async () => {
    await bus.publish('counted', 1)
    await dieWithBatch()
    await bus.poll({ h: noting([], fail) }, { at: later(75) })
    expect(await bus.deliveries()).toMatchObject([
      { handler: 'h', alone: false, attempt: 1, dueAt: later(90) },
    ])
  })

  it('gives a poll as many of its events as the limit allows; the rest waits for the next', async () => {
    const calls: number[] = []
    await bus.publish('counted', 1, 2, 3)
    await dieWithBatch()
    expect(await bus.poll({ h: noting(calls) }, { at: later(75), limits: { alone: 2 } })).toMatchObject({
      claimed: 2,
      repaired: 3,
      nextDueAt: later(75),
    })
    await bus.poll({ h: noting(calls) }, { at: later(75) })
    expect(calls).toEqual([1, 2, 3])
  })

  it('keeps an event for itself that was not started alone, uncharged', async () => {
    const controller = new AbortController()
    await bus.publish('counted', 1, 2)
    await dieWithBatch()
    await bus.publish('counted', 3)
    const calls: number[] = []
    const h = noting(calls, () => controller.abort())
    await bus.poll({ h }, { at: later(75), signal: controller.signal })
    expect(calls).toEqual([3])
    expect(await bus.deliveries()).toMatchObject([
      { n: 1, alone: true, leased: false, attempt: 0 },
      { n: 2, alone: true, leased: false, attempt: 0 },
    ])
  })

  it('may hold events of handlers that are gone by now', async () => {
    await bus.publish('counted', 1)
    await dieWithBatch()
    await bus.poll({ a: noting([]), b: noting([]) }, { at: later(75), limits: { alone: 1 } })
    expect(await bus.deliveries()).toMatchObject([
      { handler: 'a', alone: true },
      { handler: 'b', alone: true },
    ])
    await dieAlone(later(75))
    expect(await bus.poll({ b: noting([]) }, { at: later(150) })).toMatchObject({ dead: 1, succeeded: 1 })
    expect(await bus.deadLetters()).toMatchObject([{ handler: 'a', reason: 'handler_gone' }])
  })

  it('leaves its delayed events waiting as before', async () => {
    await bus.publish('counted', 1)
    await publish(sql, counted({ n: 2 }), { dueAt: later(999) })
    await dieWithBatch()
    expect(await bus.poll({ h: noting([]) }, { at: later(75) })).toMatchObject({
      repaired: 1,
      nextDueAt: later(999),
    })
    expect(await bus.deliveries()).toMatchObject([
      { n: 2, reason: 'delayed', alone: false, dueAt: later(999) },
    ])
  })
})

describe('deliveries whose poller died', () => {
  it('run alone from then on, and nobody is charged', async () => {
    const seen: unknown[] = []
    await bus.publish('counted', 1, 2)
    await bus.poll({ h: noting([], fail) })
    expect(await dieWithBatch(later(15))).toBe(2)
    expect(await bus.poll({}, { at: later(89) })).toMatchObject({ claimed: 0, nextDueAt: later(90) })
    const h = defineHandler(counted, {}, async ({ payload }, { attempt }) => {
      seen.push([payload.n, attempt, (await bus.deliveries()).filter(({ leased }) => leased).length])
    })
    expect(await bus.poll({ h }, { at: later(90) })).toMatchObject({ claimed: 2, repaired: 2, succeeded: 2 })
    expect(seen).toEqual([
      [1, 2, 1],
      [2, 2, 1],
    ])
    expect(await bus.attempts()).toHaveLength(2)
  })
})

describe('a batch that was given back', () => {
  it('is nobody’s: no lease ends, nothing is repaired', async () => {
    const calls: number[] = []
    await bus.publish('counted', 1, 2)
    await bus.poll({ h: noting(calls) }, { signal: AbortSignal.abort() })
    expect(await bus.poll({ h: noting(calls) }, { at: later(9_999) })).toMatchObject({
      claimed: 2,
      repaired: 0,
    })
    expect(calls).toEqual([1, 2])
  })
})

describe('a poll that can not go on', () => {
  it('gives back what it held at once, uncharged', async () => {
    const calls: number[] = []
    await bus.publish('counted', 1)
    await publish(sql, counted({ n: 2 }), { dueAt: now })
    await sql`alter table loopless.attempt rename to attempt_gone`
    const failing = bus.poll({ h: noting([], fail) })
    await expect(failing).rejects.toMatchObject({ name: 'SchemaMissingError' })
    await sql`alter table loopless.attempt_gone rename to attempt`
    expect(await bus.openBatches()).toMatchObject([{ leased: false, until: now }])
    expect(await bus.deliveries()).toMatchObject([{ n: 2, leased: false, dueAt: now }])
    expect(await bus.poll({ h: noting(calls) })).toMatchObject({ claimed: 2, repaired: 0 })
    expect(calls).toEqual([1, 2])
  })
})
