import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { TimeoutError } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler, type HandlerContext, type HandlerOptions } from './handler.ts'
import { publish } from './publish.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql } = bus

const counted = defineEvent<{ n: number }>('counted')
const one = { concurrency: 1 }

/** A handler that notes the numbers of the events it gets, and then does something. */
function noting(
  numbers: number[],
  act: (n: number) => unknown = () => {},
  options: SingleOptions = {},
): Handler {
  return defineHandler(counted, options, ({ payload }) => {
    numbers.push(payload.n)
    return act(payload.n)
  })
}

/** Aborts at an event: nothing is started after it. */
function stopAt(stop: number): { signal: AbortSignal; act: (n: number) => Promise<void> } {
  const controller = new AbortController()
  const act = async (n: number): Promise<void> => {
    if (n === stop) controller.abort()
  }
  return { signal: controller.signal, act }
}

describe('handlers of single events', () => {
  /** Counts how many of its runs go on at once. */
  function crowding(options: SingleOptions = {}): { handler: Handler; most: () => number } {
    let running = 0
    let most = 0
    const handler = defineHandler('*', options, async () => {
      running++
      most = Math.max(most, running)
      for (let turns = 0; turns < 3; turns++) await turn()
      running--
    })
    return { handler, most: () => most }
  }
  const twelve = Array.from({ length: 12 }, (_, n) => n)

  it('run at once, up to the limit of the poll', async () => {
    const { handler, most } = crowding()
    await bus.publish('counted', ...twelve)
    await bus.poll({ handler }, { limits: { concurrency: 5 } })
    expect(most()).toBe(5)
  })

  it('run at once, up to the limit of each handler', async () => {
    const [two, three] = [crowding({ concurrency: 2 }), crowding({ concurrency: 3 })]
    await bus.publish('counted', ...twelve)
    await bus.poll({ two: two.handler, three: three.handler })
    expect([two.most(), three.most()]).toEqual([2, 3])
  })

  it('do not see what others have changed in their event', async () => {
    const seen: unknown[] = []
    const changing = defineHandler(counted, {}, (event, context) => {
      const { payload, ...rest } = event
      seen.push({ ...rest, n: payload.n, now: context.now })
      const open = event as { id: string; payload?: unknown; headers: Record<string, string> }
      event.publishedAt.setTime(0)
      context.now.setTime(0)
      open.headers['more'] = 'of it'
      open.id = 'no id'
      delete (payload as { n?: number }).n
    })
    await bus.publish('counted', 1)
    expect(await bus.poll({ a: changing, b: changing })).toMatchObject({ succeeded: 2 })
    expect(seen[1]).toEqual(seen[0])
    expect(seen[0]).toMatchObject({ n: 1, now, headers: {} })
  })

  it('that change the id of their event and fail are charged all the same', async () => {
    await bus.publish('counted', 1)
    const h = defineHandler(counted, {}, (event) => {
      ;(event as { id: string }).id = 'no id'
      throw new Error('no')
    })
    expect(await bus.poll({ h })).toMatchObject({ retried: 1 })
    expect(await bus.attempts()).toMatchObject([{ n: 1, message: 'no' }])
  })

  it.each([
    [
      'cannot be looked at',
      () => {
        const { proxy, revoke } = Proxy.revocable({}, {})
        revoke()
        return proxy
      },
    ],
    [
      'throws when it is looked at',
      () => ({
        // biome-ignore lint/suspicious/noThenProperty: what a handler returns may be anything
        get then() {
          throw new Error('no')
        },
      }),
    ],
  ])('have failed when their result %s', async (_, result) => {
    await bus.publish('counted', 1, 2)
    const h = noting([], (n) => (n === 1 ? result() : undefined))
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await bus.attempts()).toMatchObject([{ n: 1 }])
  })

  it('begin in the order of the events', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...twelve)
    await bus.poll({ h: noting(numbers, () => turn()) }, { limits: { concurrency: 3 } })
    expect(numbers).toEqual(twelve)
  })

  it('may answer at once, later or with anything that can be awaited', async () => {
    await bus.publish('counted', 1, 2, 3, 4)
    const answers: Record<number, unknown> = {
      1: 'now',
      2: turn('later'),
      3: sql`select 1`,
      // biome-ignore lint/suspicious/noThenProperty: what a handler returns may be any thenable
      4: { then: (resolve: () => void) => resolve() },
    }
    expect(await bus.poll({ h: noting([], (n) => answers[n]) })).toMatchObject({ succeeded: 4 })
  })

  it('fail with a thenable that throws', async () => {
    await bus.publish('counted', 1)
    const thenable = {
      // biome-ignore lint/suspicious/noThenProperty: what a handler returns may be any thenable
      then: () => {
        throw new Error('refused')
      },
    }
    expect(await bus.poll({ h: noting([], () => thenable) })).toMatchObject({ retried: 1 })
    expect(await bus.attempts()).toMatchObject([{ message: 'refused' }])
  })
})

describe('a handler that takes too long', () => {
  const timeoutSeconds = 0.1
  const never = new Promise(() => {})

  it('is given up after its time, recorded as timed out, and holds up nobody', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2, 3)
    const h = noting(numbers, (n) => (n === 2 ? never : turn()), { timeoutSeconds, jitter: 0 })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2, retried: 1, nextDueAt: later(15) })
    expect(numbers).toEqual([1, 2, 3])
    const attempts = await bus.attempts()
    expect(attempts).toMatchObject([
      { n: 2, error: 'TimeoutError', message: 'Handler h did not end within its 0.1 s (timeoutSeconds).' },
    ])
    const tookMs = (attempts[0]?.endedAt.getTime() ?? 0) - (attempts[0]?.beganAt.getTime() ?? 0)
    expect(tookMs).toBeGreaterThanOrEqual(99)
    expect(tookMs).toBeLessThan(2_000)
  })

  it('hears of it by its signal', async () => {
    const reasons: unknown[] = []
    await bus.publish('counted', 1)
    const h = defineHandler(counted, { timeoutSeconds }, (_event, { signal }) => {
      signal.addEventListener('abort', () => reasons.push(signal.reason))
      return never
    })
    await bus.poll({ h })
    expect(reasons).toEqual([expect.any(TimeoutError)])
  })

  it('hears of it also when it asks for its signal only then', async () => {
    const { promise: asked, resolve } = Promise.withResolvers<AbortSignal>()
    const { promise: over, resolve: end } = Promise.withResolvers<void>()
    await bus.publish('counted', 1)
    const h = defineHandler(counted, { timeoutSeconds }, async (_event, context) => {
      await over
      resolve(context.signal)
    })
    await bus.poll({ h })
    end()
    expect((await asked).reason).toBeInstanceOf(TimeoutError)
  })

  it('changes nothing by what it does later, be it a success or a failure', async () => {
    const { promise: over, resolve: end } = Promise.withResolvers<void>()
    await bus.publish('counted', 1, 2)
    const act = async (n: number): Promise<void> => {
      await over
      if (n === 2) throw new Error('too late')
    }
    await bus.poll({ h: noting([], act, { timeoutSeconds }) })
    end()
    await turn() // a rejection that nobody handles would end the process
    await turn()
    expect(await bus.attempts()).toMatchObject([{ error: 'TimeoutError' }, { error: 'TimeoutError' }])
    expect(await bus.deliveries()).toHaveLength(2)
  })

  it('is given up when its poll must end, and charged', async () => {
    await bus.publish('counted', 1)
    expect(await bus.poll({ h: noting([], () => never) }, { limits: { seconds: 0.05 } })).toMatchObject({
      retried: 1,
    })
    expect(await bus.attempts()).toMatchObject([
      {
        error: 'TimeoutError',
        message: expect.stringMatching(
          /^Handler h was still running when its poll had to end, 0\.\d+ s after/,
        ),
      },
    ])
  })

  it('ends in the dead letters like any other', async () => {
    await bus.publish('counted', 1)
    expect(await bus.poll({ h: noting([], () => never, { timeoutSeconds, maxAttempts: 1 }) })).toMatchObject({
      dead: 1,
    })
  })

  it('makes room for the next when its handler runs one at a time', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2)
    await bus.poll({ h: noting(numbers, (n) => (n === 1 ? never : undefined), { timeoutSeconds, ...one }) })
    expect(numbers).toEqual([1, 2])
  })

  it('leaves a signal alone that was never in danger', async () => {
    const signals: AbortSignal[] = []
    await bus.publish('counted', 1)
    const act = ({ signal }: HandlerContext): void => void signals.push(signal)
    await bus.poll({ h: defineHandler(counted, {}, (_event, context) => act(context)) })
    expect(signals[0]?.aborted).toBe(false)
  })
})

describe('what was not started', () => {
  it('is free for another poll at once, in order, and nobody is charged', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2, 3, 4, 5)
    const { signal, act } = stopAt(2)
    expect(await bus.poll({ h: noting(numbers, act, one) }, { signal })).toMatchObject({
      claimed: 5,
      succeeded: 2,
      released: 3,
      nextDueAt: now,
    })
    expect(await bus.openBatches()).toEqual([{ size: 3, leased: false, until: now }])
    expect(await bus.deliveries()).toEqual([])
    expect(await bus.attempts()).toEqual([])
    await bus.publish('counted', 6)
    await bus.poll({ h: noting(numbers) })
    await bus.poll({ h: noting(numbers) })
    expect(numbers).toEqual([1, 2, 3, 4, 5, 6])
    expect(await bus.poll({ h: noting(numbers) })).toMatchObject({ claimed: 0, nextDueAt: null })
  })

  it('is shared by further polls when it is more than they take', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2, 3, 4, 5)
    const first = stopAt(1)
    await bus.poll({ h: noting(numbers, first.act, one) }, { signal: first.signal })
    const second = stopAt(2)
    await bus.poll({ h: noting(numbers, second.act, one) }, { signal: second.signal, limits: { events: 3 } })
    expect(await bus.openBatches()).toMatchObject([{ size: 2 }, { size: 1 }])
    while ((await bus.poll({ h: noting(numbers) }, { limits: { events: 1 } })).claimed > 0);
    expect(numbers.toSorted()).toEqual([1, 2, 3, 4, 5])
    expect(await bus.openBatches()).toEqual([])
  })

  it('is the whole batch when nothing was', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2)
    expect(await bus.poll({ h: noting(numbers) }, { signal: AbortSignal.abort() })).toMatchObject({
      claimed: 2,
      released: 2,
    })
    expect(await bus.openBatches()).toEqual([{ size: 2, leased: false, until: now }])
    await bus.publish('counted', 3)
    await bus.poll({ h: noting(numbers) })
    await bus.poll({ h: noting(numbers) })
    expect(numbers).toEqual([1, 2, 3])
  })

  it('is given back by deliveries too, with the attempts they had', async () => {
    const failing = noting([], () => Promise.reject(new Error('no')), { jitter: 0 })
    await bus.publish('counted', 1, 2, 3)
    await bus.poll({ h: failing })
    const { signal, act } = stopAt(1)
    expect(await bus.poll({ h: noting([], act, one) }, { signal, at: later(15) })).toMatchObject({
      claimed: 3,
      succeeded: 1,
      released: 2,
      nextDueAt: later(15),
    })
    expect(await bus.deliveries()).toMatchObject([
      { n: 2, dueAt: later(15), attempt: 1, leased: false },
      { n: 3, dueAt: later(15), attempt: 1, leased: false },
    ])
    expect(await bus.poll({ h: noting([]) }, { at: later(15) })).toMatchObject({ succeeded: 2 })
  })

  it('becomes a delivery when another handler did handle the event', async () => {
    const calls: string[] = []
    const { signal, act } = stopAt(2)
    const on = (name: string): Handler =>
      defineHandler(counted, {}, async ({ payload }) => {
        calls.push(`${name}${payload.n}`)
        await act(payload.n)
      })
    const handlers = { a: on('a'), b: on('b') }
    await bus.publish('counted', 1, 2, 3)
    expect(await bus.poll(handlers, { signal, limits: one })).toMatchObject({
      released: 1,
      succeeded: 3,
      nextDueAt: now,
    })
    expect(await bus.deliveries()).toEqual([
      { n: 2, handler: 'b', reason: 'released', dueAt: now, attempt: 0, alone: false, leased: false },
    ])
    await bus.poll(handlers, { limits: one })
    expect(calls).toEqual(['a1', 'b1', 'a2', 'a3', 'b3', 'b2'])
    expect(await bus.attempts()).toEqual([])
    expect(await bus.deliveries()).toEqual([])
  })

  it('becomes a delivery of its handler when it waited for all of them', async () => {
    const { signal, act } = stopAt(1)
    await publish(sql, counted({ n: 1 }), { dueAt: now })
    await bus.poll({ a: noting([], act), b: noting([]) }, { signal, limits: one })
    expect(await bus.deliveries()).toMatchObject([{ n: 1, handler: 'b', reason: 'released', attempt: 0 }])
  })

  it('counts what nobody handles once, though it is claimed again', async () => {
    await bus.publish('counted', 1)
    await bus.publish('unheard', 2)
    await bus.publish('counted', 3)
    await bus.publish('unheard', 4)
    const { signal, act } = stopAt(1)
    expect(await bus.poll({ h: noting([], act, one) }, { signal })).toMatchObject({
      released: 3,
      unhandled: 0,
    })
    expect(await bus.poll({ h: noting([]) })).toMatchObject({ claimed: 3, unhandled: 2 })
  })

  it('includes the events of a batch handler that was not called', async () => {
    const numbers: number[] = []
    const { signal, act } = stopAt(1)
    const batch = defineHandler(counted, { batch: true }, (events) => {
      numbers.push(...events.map(({ payload }) => payload.n))
    })
    await bus.publish('counted', 1, 2)
    await bus.poll({ single: noting([], act, one), batch }, { signal })
    expect(await bus.deliveries()).toMatchObject([{ n: 1, handler: 'batch', reason: 'released' }])
    await bus.poll({ single: noting([]), batch })
    expect(numbers).toEqual([2, 1])
  })
})

describe('what would not fit before the end', () => {
  it('is not started, nor anything behind it', async () => {
    const numbers: number[] = []
    await bus.publish('quick', 1)
    await bus.publish('slow', 2)
    await bus.publish('quick', 3)
    const on = (pattern: string): Handler =>
      defineHandler(pattern, {}, ({ payload }) => void numbers.push((payload as { n: number }).n))
    const handlers = { quick: on('quick'), slow: on('slow') }
    const durations = new Map([['slow', 3_000]])
    expect(await bus.poll(handlers, { durations, limits: { seconds: 5 } })).toMatchObject({
      succeeded: 1,
      released: 2,
    })
    expect(numbers).toEqual([1])
    await bus.poll(handlers, { durations, limits: { seconds: 60 } })
    expect(numbers).toEqual([1, 2, 3])
  })

  it('is not told from durations that the time-out does not allow', async () => {
    await bus.publish('counted', 1)
    const durations = new Map([['h', 4_000]])
    const h = noting([], () => {}, { timeoutSeconds: 4 })
    expect(await bus.poll({ h }, { durations, limits: { seconds: 5 } })).toMatchObject({ succeeded: 1 })
  })

  it('is told from how long the handler took lately', async () => {
    const durations = new Map<string, number>()
    await bus.publish('counted', 1, 2)
    await bus.poll(
      { h: noting([], (n) => (n === 1 ? undefined : turn())), unused: noting([]) },
      { durations },
    )
    expect([...durations.keys()]).toEqual(['h', 'unused'])
    for (const ms of durations.values()) expect(ms).toBeLessThan(1_000)
  })

  it('is a batch handler too', async () => {
    const batch = defineHandler(counted, { batch: true }, () => {})
    await bus.publish('counted', 1, 2)
    const durations = new Map([['batch', 3_000]])
    expect(await bus.poll({ batch }, { durations, limits: { seconds: 5 } })).toMatchObject({
      succeeded: 0,
      released: 2,
    })
    expect(await bus.openBatches()).toMatchObject([{ size: 2 }])
  })
})
