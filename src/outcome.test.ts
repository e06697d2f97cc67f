import { describe, expect, it, vi } from 'vitest'
import * as z from 'zod'
import { later, now, testBus } from '../tests/support/bus.ts'
import { discard, InvalidEventError, RetryRequest, retryAfter, retryAt } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler, type HandlerOptions } from './handler.ts'
import { publish } from './publish.ts'
import { redrive } from './redrive.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql } = bus

const counted = defineEvent<{ n: number }>('counted')

/** A handler that fails as it is told to. */
function failing(fail: (n: number, attempt: number) => unknown, options: SingleOptions = {}): Handler {
  return defineHandler(counted, { jitter: 0, ...options }, ({ payload }, { attempt }) => {
    const thrown = fail(payload.n, attempt)
    if (thrown !== undefined) throw thrown
  })
}

const always = (): Error => new Error('no')

it('is told to be discarded, and when to try again, by another copy of the library too', async () => {
  vi.resetModules()
  const other = await import('./errors.ts')
  expect(other.discard).not.toBe(discard)
  await bus.publish('counted', 1, 2, 3)
  const requests = [other.discard('old'), other.retryAfter(7), other.retryAt(later(9))]
  expect(await bus.poll({ h: failing((n) => requests[n - 1]) })).toMatchObject({ dead: 1, retried: 2 })
  expect(await bus.deliveries()).toMatchObject([{ dueAt: later(7) }, { dueAt: later(9) }])
})

describe('a handler that fails', () => {
  it('is tried again after exactly base · 2^(attempt−1) without jitter, counted from the poll’s now', async () => {
    const attempts: number[] = []
    const fail = (_n: number, attempt: number): Error => {
      attempts.push(attempt)
      return new Error('no')
    }
    const handlers = { h: failing(fail, { maxAttempts: 9, baseDelaySeconds: 0.25, maxDelaySeconds: 1.5 }) }
    await bus.publish('counted', 1)
    let at = now
    for (const delayMs of [250, 500, 1_000, 1_500, 1_500]) {
      const due = new Date(at.getTime() + delayMs)
      expect(await bus.poll(handlers, { at })).toMatchObject({ claimed: 1, retried: 1, nextDueAt: due })
      expect(await bus.deliveries()).toMatchObject([
        { handler: 'h', reason: 'retry', dueAt: due, leased: false },
      ])
      const early = new Date(due.getTime() - 1)
      expect(await bus.poll(handlers, { at: early })).toMatchObject({ claimed: 0, nextDueAt: due })
      at = due
    }
    expect(attempts).toEqual([1, 2, 3, 4, 5])
  })

  it('is tried again after a delay that is spread by its jitter', async () => {
    await bus.publish('counted', 1)
    const handlers = { h: failing(always, { baseDelaySeconds: 10, jitter: 0.5 }) }
    await bus.poll(handlers, { random: () => 0.25 })
    expect(await bus.deliveries()).toMatchObject([{ dueAt: later(7.5) }])
  })

  it('is done once it succeeds', async () => {
    const attempts: number[] = []
    await bus.publish('counted', 1)
    const fail = (_n: number, attempt: number): Error | undefined => {
      attempts.push(attempt)
      return attempt < 3 ? new Error('not yet') : undefined
    }
    const handlers = { h: failing(fail, { maxAttempts: 9 }) }
    expect(await bus.poll(handlers)).toMatchObject({ succeeded: 0, retried: 1 })
    expect(await bus.poll(handlers, { at: later(15) })).toMatchObject({ succeeded: 0, retried: 1 })
    expect(await bus.poll(handlers, { at: later(45) })).toMatchObject({
      succeeded: 1,
      retried: 0,
      nextDueAt: null,
    })
    expect(await bus.poll(handlers, { at: later(9_999) })).toMatchObject({ claimed: 0 })
    expect(attempts).toEqual([1, 2, 3])
    expect(await bus.deliveries()).toEqual([])
    expect(await bus.deadLetters()).toEqual([])
  })

  it('does not hold up others', async () => {
    const handlers = { h: failing((n) => (n === 2 ? new Error('no') : undefined)) }
    await bus.publish('counted', 1, 2, 3)
    expect(await bus.poll(handlers)).toMatchObject({ claimed: 3, succeeded: 2, retried: 1 })
    expect(await bus.deliveries()).toMatchObject([{ n: 2 }])
  })

  it('ends in the dead letters after its last attempt, with every error and the times of every attempt', async () => {
    const handlers = { h: failing((_n, attempt) => new RangeError(`failure ${attempt}`)) }
    await bus.publish('counted', 1)
    for (const at of [now, later(15)])
      expect(await bus.poll(handlers, { at })).toMatchObject({ retried: 1, dead: 0 })
    expect(await bus.poll(handlers, { at: later(45) })).toMatchObject({
      retried: 0,
      dead: 1,
      nextDueAt: null,
    })
    expect(await bus.deliveries()).toEqual([])
    expect(await bus.deadLetters()).toEqual([
      { n: 1, handler: 'h', reason: 'exhausted', attempts: 3, message: 'failure 3' },
    ])
    expect(await sql`select died_at from loopless.dead_letter`).toEqual([{ died_at: later(45) }])
    const attempts = await bus.attempts()
    expect(attempts).toMatchObject(
      [1, 2, 3].map((attempt) => ({
        handler: 'h',
        attempt,
        error: 'RangeError',
        message: `failure ${attempt}`,
      })),
    )
    for (const [index, at] of [now, later(15), later(45)].entries()) {
      const { beganAt, endedAt, stack } = attempts[index] ?? {}
      expect(beganAt?.getTime()).toBeGreaterThanOrEqual(at.getTime())
      expect(endedAt?.getTime()).toBeGreaterThanOrEqual(beganAt?.getTime() ?? Infinity)
      expect(endedAt?.getTime()).toBeLessThan(at.getTime() + 15_000)
      expect(stack).toMatch(/RangeError: failure \d\n +at .*outcome\.test\.ts/)
    }
    expect(await bus.poll(handlers, { at: later(9_999) })).toMatchObject({ claimed: 0 })
  })

  it('with one attempt goes to the dead letters at once', async () => {
    await bus.publish('counted', 1)
    expect(await bus.poll({ h: failing(always, { maxAttempts: 1 }) })).toMatchObject({ retried: 0, dead: 1 })
    expect(await bus.deadLetters()).toMatchObject([{ reason: 'exhausted', attempts: 1 }])
  })

  it('whose maxAttempts was lowered meanwhile is not tried for ever', async () => {
    await bus.publish('counted', 1)
    await bus.poll({ h: failing(always, { maxAttempts: 9 }) })
    await bus.poll({ h: failing(always, { maxAttempts: 9 }) }, { at: later(15) })
    expect(await bus.poll({ h: failing(always, { maxAttempts: 1 }) }, { at: later(45) })).toMatchObject({
      dead: 1,
    })
    expect(await bus.deadLetters()).toMatchObject([{ attempts: 3 }])
  })
})

describe('several handlers of one event', () => {
  it('retry each on its own', async () => {
    const calls: string[] = []
    const handler = (name: string, failures: number, options: SingleOptions): Handler =>
      defineHandler('*', { jitter: 0, ...options }, (_event, { attempt }) => {
        calls.push(`${name}${attempt}`)
        if (attempt <= failures) throw new Error(`${name}${attempt} failed`)
      })
    const handlers = {
      a: handler('a', 0, {}),
      b: handler('b', 1, { baseDelaySeconds: 10 }),
      c: handler('c', 9, { baseDelaySeconds: 20, maxAttempts: 2 }),
    }
    await bus.publish('counted', 1)
    expect(await bus.poll(handlers)).toMatchObject({
      claimed: 1,
      succeeded: 1,
      retried: 2,
      nextDueAt: later(10),
    })
    expect(await bus.poll(handlers, { at: later(10) })).toMatchObject({
      claimed: 1,
      succeeded: 1,
      nextDueAt: later(20),
    })
    expect(await bus.poll(handlers, { at: later(20) })).toMatchObject({
      claimed: 1,
      dead: 1,
      nextDueAt: null,
    })
    expect(calls).toEqual(['a1', 'b1', 'c1', 'b2', 'c2'])
    expect(await bus.attempts()).toMatchObject([
      { handler: 'b', message: 'b1 failed' },
      { handler: 'c', message: 'c1 failed' },
      { handler: 'c', message: 'c2 failed' },
    ])
    expect(await bus.deadLetters()).toMatchObject([{ handler: 'c', message: 'c2 failed' }])
  })

  it('include those of a wildcard', async () => {
    const calls: string[] = []
    const on = (name: string, pattern: string): Handler =>
      defineHandler(pattern, {}, (event) => void calls.push(`${name} ${event.name}`))
    const handlers = {
      all: on('all', '*'),
      orders: on('orders', 'order.*'),
      placed: on('placed', 'order.placed'),
    }
    await bus.publish('order.placed', 1)
    await bus.publish('order', 2)
    await bus.publish('order.line.added', 3)
    expect(await bus.poll(handlers)).toMatchObject({ claimed: 3, succeeded: 6 })
    expect(calls).toEqual([
      'all order.placed',
      'orders order.placed',
      'placed order.placed',
      'all order',
      'all order.line.added',
      'orders order.line.added',
    ])
  })
})

describe('a handler that says when', () => {
  it('is tried again at that time, whatever its backoff, and it is an attempt', async () => {
    const at = new Date('2030-01-01T00:07:00.123Z')
    const handlers = {
      h: failing((n) => (n === 1 ? retryAt(at) : retryAfter(0.5, { cause: new Error('busy') })), {
        maxAttempts: 2,
      }),
    }
    await bus.publish('counted', 1, 2)
    expect(await bus.poll(handlers)).toMatchObject({ retried: 2, nextDueAt: later(0.5) })
    expect(await bus.deliveries()).toMatchObject([
      { n: 1, dueAt: at, attempt: 1 },
      { n: 2, dueAt: later(0.5), attempt: 1 },
    ])
    expect(await bus.attempts()).toMatchObject([
      {
        n: 1,
        error: 'RetryRequest',
        message: 'The handler asked to be tried again at 2030-01-01T00:07:00.123Z.',
      },
      { n: 2, error: 'RetryRequest', stack: expect.stringContaining('caused by: Error: busy') },
    ])
    await bus.poll(handlers, { at })
    expect(await bus.deadLetters()).toMatchObject([
      { n: 1, reason: 'exhausted', attempts: 2 },
      { n: 2, reason: 'exhausted', attempts: 2 },
    ])
  })

  it('may name a time that is over: then it is due at once', async () => {
    await bus.publish('counted', 1)
    const handlers = { h: failing((_n, attempt) => (attempt === 1 ? retryAt(later(-60)) : undefined)) }
    expect(await bus.poll(handlers)).toMatchObject({ retried: 1, nextDueAt: later(-60) })
    expect(await bus.poll(handlers)).toMatchObject({ succeeded: 1 })
  })

  it('may say so in a result of a batch handler', async () => {
    await bus.publish('counted', 1, 2)
    const h = defineHandler(counted, { batch: true }, (events) => ({
      failed: events.map(({ id, payload }) => ({
        id,
        error: payload.n === 1 ? retryAfter(7) : discard('old'),
      })),
    }))
    await bus.poll({ h })
    expect(await bus.deliveries()).toMatchObject([{ n: 1, dueAt: later(7) }])
    expect(await bus.deadLetters()).toMatchObject([{ n: 2, reason: 'discarded' }])
  })

  it.each<[string, () => unknown]>([
    ['a date that is none', () => retryAt(new Date('no'))],
    ['no date', () => retryAt('2030-01-01' as never)],
    ['a year that Postgres does not read', () => retryAt(new Date(8.64e15))],
    ['a year before 1970', () => retryAt(new Date(-1))],
    ['a negative delay', () => retryAfter(-1)],
    ['no number', () => retryAfter('5' as never)],
    ['NaN', () => retryAfter(Number.NaN)],
    ['a delay of ages', () => retryAfter(1e300)],
    ['the same by hand', () => new RetryRequest({ afterSeconds: 1e300 })],
  ])('must name a time that can be kept, or fails like any other: %s', async (_what, request) => {
    await bus.publish('counted', 1)
    await bus.poll({ h: failing(request) })
    expect(await bus.attempts()).toMatchObject([
      { error: 'InvalidOptionError', message: expect.stringMatching(/^Expected retry(At|After) to get/) },
    ])
    expect(await bus.deliveries()).toMatchObject([{ dueAt: later(15), leased: false }])
  })
})

describe('a handler that gives an event up', () => {
  it('sends it to the dead letters at once, whatever attempts are left', async () => {
    await bus.publish('counted', 1)
    const h = failing(() => discard('The order was cancelled.'), { maxAttempts: 9 })
    expect(await bus.poll({ h })).toMatchObject({ retried: 0, dead: 1 })
    expect(await bus.deadLetters()).toEqual([
      { n: 1, handler: 'h', reason: 'discarded', attempts: 1, message: 'The order was cancelled.' },
    ])
    expect(await bus.attempts()).toMatchObject([{ error: 'DiscardRequest' }])
  })
})

describe('whatever is thrown', () => {
  const cyclic = new Error('cyclic')
  cyclic.cause = cyclic

  it.each<[string, unknown, { error: string; message: unknown }]>([
    ['a string', 'out of paper', { error: 'NonError', message: "Thrown, and not an Error: 'out of paper'" }],
    ['null', null, { error: 'NonError', message: 'Thrown, and not an Error: null' }],
    ['a cause that is the error itself', cyclic, { error: 'Error', message: 'cyclic' }],
    [
      'what Postgres can not keep',
      new Error('a\u0000b \uD800 😀'),
      { error: 'Error', message: 'a\uFFFDb \uFFFD 😀' },
    ],
    [
      'what is too long',
      new Error('x'.repeat(1_000_000)),
      { error: 'Error', message: expect.stringMatching(/^x{8191}…$/) },
    ],
    [
      'what would be markup or JSON',
      new Error(`'"\\u0000<b>\n$1 \u2028`),
      { error: 'Error', message: `'"\\u0000<b>\n$1 \u2028` },
    ],
    [
      'an event that is refused',
      new InvalidEventError('INVALID_PAYLOAD', 'a', 'bad'),
      { error: 'InvalidEventError', message: 'bad' },
    ],
  ])('is recorded, and tried again: %s', async (_what, thrown, recorded) => {
    await bus.publish('counted', 1, 2)
    const h = failing((n) => (n === 1 ? thrown : undefined))
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await bus.attempts()).toMatchObject([recorded])
  })

  it('may be undefined', async () => {
    await bus.publish('counted', 1)
    const h = defineHandler(counted, {}, async () => {
      throw undefined
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 0, retried: 1 })
    expect(await bus.attempts()).toMatchObject([{ message: 'Thrown, and not an Error: undefined' }])
  })
})

describe('a payload that no longer fits the schema', () => {
  const strict = defineEvent(
    'counted',
    z.object({ n: z.number().max(1), tags: z.array(z.string()).optional() }),
  )

  it('goes to the dead letters at once, with the reason, without an attempt, and the handler is not called', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2)
    const h = defineHandler(strict, {}, ({ payload }) => void numbers.push(payload.n))
    expect(await bus.poll({ h })).toMatchObject({ claimed: 2, succeeded: 1, retried: 0, dead: 1 })
    expect(numbers).toEqual([1])
    expect(await bus.deadLetters()).toEqual([
      {
        n: 2,
        handler: 'h',
        reason: 'invalid',
        attempts: 0,
        message: expect.stringMatching(/schema of counted: n: Too big/),
      },
    ])
    expect(await bus.attempts()).toEqual([])
  })

  it('is a matter of each handler', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 2)
    const lax = defineHandler(counted, {}, ({ payload }) => void numbers.push(payload.n))
    await bus.poll({ strict: defineHandler(strict, {}, () => {}), lax })
    expect(numbers).toEqual([2])
    expect(await bus.deadLetters()).toMatchObject([{ handler: 'strict' }])
  })

  it('keeps the attempts that were charged before, and can be redriven once it fits again', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 2)
    await bus.poll({ h: failing(always) })
    await bus.poll({ h: defineHandler(strict, {}, () => {}) }, { at: later(15) })
    expect(await bus.deadLetters()).toMatchObject([{ reason: 'invalid', attempts: 1 }])
    expect(await bus.attempts()).toHaveLength(1)
    await redrive(sql, later(20))
    await bus.poll(
      { h: defineHandler(counted, {}, ({ payload }) => void numbers.push(payload.n)) },
      { at: later(20) },
    )
    expect(numbers).toEqual([2])
    expect(await bus.deliveries()).toEqual([])
  })

  it('is told from a handler that throws such an error itself', async () => {
    await bus.publish('counted', 1)
    const throwing = defineHandler(strict, {}, () => {
      throw new InvalidEventError('INVALID_PAYLOAD', 'other', 'what it wanted to publish')
    })
    expect(await bus.poll({ throwing })).toMatchObject({ retried: 1, dead: 0 })
  })

  it('names the place, at any depth', async () => {
    await sql`select loopless.publish('counted', '{"n": 1, "tags": ["a", 2]}')`
    await bus.poll({ h: defineHandler(strict, {}, () => {}) })
    expect(await bus.deadLetters()).toMatchObject([{ message: expect.stringContaining('tags.1: ') }])
  })
})

describe('a delivery of a handler that is gone', () => {
  it('becomes a dead letter with that reason, and can be redriven once the handler is back', async () => {
    await bus.publish('counted', 1)
    await bus.poll({ old: failing(always), other: failing(() => undefined) })
    expect(await bus.poll({ other: failing(always) }, { at: later(15) })).toMatchObject({
      claimed: 1,
      dead: 1,
      succeeded: 0,
    })
    expect(await bus.deliveries()).toEqual([])
    expect(await bus.deadLetters()).toEqual([
      {
        n: 1,
        handler: 'old',
        reason: 'handler_gone',
        attempts: 1,
        message: expect.stringContaining('No handler is named old'),
      },
    ])
    expect(await bus.attempts()).toHaveLength(1)
    await redrive(sql, later(15))
    expect(await bus.poll({ old: failing(() => undefined) }, { at: later(15) })).toMatchObject({
      succeeded: 1,
    })
  })
})

describe('an event that nobody handles', () => {
  it('is counted, and stays in the log', async () => {
    await bus.publish('counted', 1)
    await bus.publish('unheard', 2, 3)
    expect(await bus.poll({ h: failing(() => undefined) })).toMatchObject({
      claimed: 3,
      succeeded: 1,
      unhandled: 2,
    })
    expect(await sql`select name from loopless.event order by id`).toHaveLength(3)
    expect(await bus.deadLetters()).toEqual([])
    expect(await bus.poll({ h: failing(() => undefined) })).toMatchObject({ claimed: 0, unhandled: 0 })
  })

  it('is no more work when it was delayed', async () => {
    await publish(sql, counted({ n: 1 }), { dueAt: later(5) })
    expect(await bus.poll({}, { at: later(5) })).toMatchObject({ claimed: 1, unhandled: 1, nextDueAt: null })
    expect(await bus.deliveries()).toEqual([])
  })
})
