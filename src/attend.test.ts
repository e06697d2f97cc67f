import { beforeEach, describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { type AttendReport, attend } from './attend.ts'
import type { AttendOptions, PollerPurpose } from './attend-options.ts'
import { HandlerSetError, InvalidOptionError } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { goIdle, markAwake } from './idle.ts'
import { publish } from './publish.ts'
import { register } from './register.ts'

const bus = await testBus()
const { sql, poller, connect } = bus
const happened = defineEvent<{ n: number }>('happened')

/** What handlers were called with. */
let handled: number[] = []
const record = defineHandler(happened, {}, ({ payload }) => {
  handled.push(payload.n)
})

/** Whether somebody has said to be awake, and nobody since that none is. */
async function isAwake(): Promise<boolean> {
  const [row] = await sql<{ awake: boolean }[]>`select last_value > 0 as awake from loopless.wake_mark`
  return row?.awake ?? false
}

beforeEach(async () => {
  handled = []
  await sql`select loopless.set_wake(${now}, 'a-function')`
})

/** An attendance that ends as soon as it may; its clock stands still unless the test moves it. */
function attendWith(
  handlers: Readonly<Record<string, Handler>>,
  options: Partial<AttendOptions> = {},
): Promise<AttendReport> {
  return attend({
    sql: poller,
    handlers: defineHandlers(handlers),
    clock: () => now,
    deadline: later(60),
    lingerMs: 0,
    ...options,
  })
}

/** Invokes nobody, and keeps what for. */
function invocations(): { purposes: PollerPurpose[]; invoke(purpose: PollerPurpose): Promise<void> } {
  const purposes: PollerPurpose[] = []
  return {
    purposes,
    invoke: async (purpose) => {
      purposes.push(purpose)
    },
  }
}

describe('an attendance', () => {
  it('handles what is due, says that it is awake meanwhile, and goes idle', async () => {
    await bus.publish('happened', 1, 2)
    let wasAwake = false
    const look = defineHandler(happened, {}, async ({ payload }) => {
      wasAwake = await isAwake()
      handled.push(payload.n)
    })
    expect(await attendWith({ look })).toMatchObject({
      ended: 'idle',
      claimed: 2,
      succeeded: 2,
      drained: true,
      helpers: 0,
    })
    expect(handled).toEqual([1, 2])
    expect(wasAwake).toBe(true)
    expect(await isAwake()).toBe(false)
  })

  it('waits for the commit that woke it, and handles what it brings', async () => {
    const session = await connect({ max: 1 }).reserve()
    await session`begin`
    await publish(session, happened({ n: 1 }))
    await markAwake(sql, 0)
    const attendance = attendWith({ record })
    await expect.poll(isAwake).toBe(true)
    await session`commit`
    session.release()
    expect(await attendance).toMatchObject({ ended: 'idle', succeeded: 1 })
  })

  it('leaves a publisher that stays in flight to the next wake once its patience has ended', async () => {
    const session = await connect({ max: 1 }).reserve()
    await session`begin`
    await publish(session, happened({ n: 1 }))
    expect(await attendWith({ record }, { patienceMs: 0 })).toMatchObject({ ended: 'impatient', claimed: 0 })
    expect(await isAwake()).toBe(false)
    await session`commit`
    session.release()
  })

  it('looks again while it lingers, without being woken', async () => {
    await bus.publish('happened', 1)
    const stopping = new AbortController()
    const attendance = attendWith({ record }, { lingerMs: 60_000, signal: stopping.signal })
    await expect.poll(() => handled).toEqual([1])
    await bus.publish('happened', 2)
    await expect.poll(() => handled).toEqual([1, 2])
    stopping.abort()
    expect(await attendance).toMatchObject({ ended: 'stopped', succeeded: 2 })
  })

  it('ends at the signal, gives back what it has not started, and says that nobody is awake', async () => {
    await bus.publish('happened', 1, 2)
    const stopping = new AbortController()
    const stop = defineHandler(happened, { concurrency: 1 }, () => stopping.abort())
    const { purposes, invoke } = invocations()
    expect(await attendWith({ stop }, { signal: stopping.signal, invoke })).toMatchObject({
      ended: 'stopped',
      succeeded: 1,
      released: 1,
    })
    expect(purposes).toEqual([])
    expect(await isAwake()).toBe(false)
  })

  it('refuses to claim with handlers that are not the registered ones', async () => {
    await register(sql, defineHandlers({ other: record }), now)
    await bus.publish('happened', 1)
    await expect(attendWith({ record })).rejects.toBeInstanceOf(HandlerSetError)
  })

  it('refuses handlers that are no set before publishers rely on it', async () => {
    await expect(attendWith({}, { handlers: { record } as never })).rejects.toBeInstanceOf(InvalidOptionError)
    expect(await isAwake()).toBe(false)
  })

  it.each([{ lingerMs: -1 }, { patienceMs: 0.5 }, { maxPollers: 0 }, { helperBacklog: Number.NaN }])(
    'refuses settings out of range: %o',
    async (settings) => {
      await expect(attendWith({ record }, settings)).rejects.toBeInstanceOf(InvalidOptionError)
    },
  )
})

describe('near its deadline', () => {
  /** A handler after which the deadline is reached. */
  function endless(): { handlers: Record<string, Handler>; clock(): Date } {
    let at = now
    const slow = defineHandler(happened, { concurrency: 1 }, () => {
      at = later(59)
    })
    return { handlers: { slow }, clock: () => at }
  }

  it('invokes exactly one successor when something is left, on whom publishers rely', async () => {
    const { handlers, clock } = endless()
    await bus.publish('happened', ...Array.from({ length: 60 }, (_, n) => n))
    const { purposes, invoke } = invocations()
    expect(await attendWith(handlers, { clock, invoke })).toMatchObject({ ended: 'continued' })
    expect(purposes).toEqual(['continue'])
    expect(await isAwake()).toBe(true)
  })

  it('leaves the rest to the next wake when nobody can be invoked', async () => {
    const { handlers, clock } = endless()
    await bus.publish('happened', ...Array.from({ length: 60 }, (_, n) => n))
    const report = await attendWith(handlers, {
      clock,
      invoke: async () => {
        throw new Error('Rate exceeded')
      },
    })
    expect(report).toMatchObject({ ended: 'stopped' })
    expect(await isAwake()).toBe(false)
  })

  it('goes idle, without a successor, when nothing is left', async () => {
    const { handlers, clock } = endless()
    await bus.publish('happened', 1)
    const { purposes, invoke } = invocations()
    expect(await attendWith(handlers, { clock, invoke })).toMatchObject({ ended: 'idle', succeeded: 1 })
    expect(purposes).toEqual([])
  })

  it('hands a publisher in flight over to its successor', async () => {
    const session = await connect({ max: 1 }).reserve()
    await session`begin`
    await publish(session, happened({ n: 1 }))
    const { purposes, invoke } = invocations()
    expect(
      await attendWith({ record }, { clock: () => later(60), deadline: later(60), invoke }),
    ).toMatchObject({
      ended: 'continued',
    })
    expect(purposes).toEqual(['continue'])
    await session`rollback`
    session.release()
    expect(await goIdle(poller, now, true)).toBe('idle')
  })
})

describe('with a long backlog', () => {
  const backlog = Array.from({ length: 300 }, (_, n) => n)

  it('invokes a helper for each so many events that wait, and no more pollers than allowed', async () => {
    await bus.publish('happened', ...backlog)
    const { purposes, invoke } = invocations()
    const report = await attendWith({ record }, { invoke, maxPollers: 3, helperBacklog: 20 })
    expect(report).toMatchObject({ ended: 'idle', succeeded: 300, helpers: 2 })
    expect(purposes).toEqual(['help', 'help'])
  })

  it('invokes nobody for a short one, or when one poller is all that is allowed', async () => {
    const { purposes, invoke } = invocations()
    await bus.publish('happened', ...backlog)
    expect(await attendWith({ record }, { invoke, maxPollers: 3, helperBacklog: 1_000 })).toMatchObject({
      helpers: 0,
    })
    await bus.publish('happened', ...backlog)
    expect(await attendWith({ record }, { invoke, maxPollers: 1, helperBacklog: 20 })).toMatchObject({
      helpers: 0,
    })
    expect(purposes).toEqual([])
  })

  it('handles it alone when no helper can be invoked', async () => {
    await bus.publish('happened', ...backlog)
    const report = await attendWith(
      { record },
      {
        maxPollers: 3,
        helperBacklog: 20,
        invoke: async () => {
          throw new Error('Rate exceeded')
        },
      },
    )
    expect(report).toMatchObject({ ended: 'idle', succeeded: 300, helpers: 0 })
  })
})

it('says that it is awake for a moment ahead only, so that one that was killed is soon replaced', async () => {
  let aheadMs = 0
  const look = defineHandler(happened, {}, async () => {
    const [row] = await sql<{ ahead: number }[]>`
      select last_value - date_part('epoch', clock_timestamp()) * 1000 as ahead from loopless.wake_mark`
    aheadMs = row?.ahead ?? Number.POSITIVE_INFINITY
  })
  await bus.publish('happened', 1)
  await attendWith({ look })
  expect(aheadMs).toBeLessThanOrEqual(2_000)
})
