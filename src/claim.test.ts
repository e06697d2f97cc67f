import { describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler, type HandlerOptions } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { poll } from './poll.ts'
import { publish } from './publish.ts'
import { register } from './register.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql, poller, connect } = bus

const counted = defineEvent<{ n: number }>('counted')

/** A handler that notes the numbers of the events it gets. */
function noting(numbers: number[], options: SingleOptions = {}): { counter: Handler } {
  return { counter: defineHandler(counted, options, ({ payload }) => void numbers.push(payload.n)) }
}

/** As many numbers, from 1 or from another one. */
function range(count: number, from = 1): number[] {
  return Array.from({ length: count }, (_, index) => from + index)
}

/** Makes deliveries that are due: events that were delayed. */
async function publishDelayed(numbers: ReadonlyArray<number>, dueAt = now): Promise<void> {
  for (const n of numbers) await publish(sql, counted({ n }), { dueAt })
}

describe('the order', () => {
  it('is that of publishing, over transactions and polls', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2, 3)
    await bus.publish('counted', 4, 5)
    await bus.poll(noting(numbers), { limits: { events: 2 } })
    await bus.publish('counted', 6)
    for (let polls = 0; polls < 3; polls++) await bus.poll(noting(numbers), { limits: { events: 2 } })
    expect(numbers).toEqual([1, 2, 3, 4, 5, 6])
  })

  it('is new events first, then due deliveries by the order of publishing', async () => {
    const numbers: number[] = []
    await publishDelayed([1], later(-1))
    await publishDelayed([2], later(-2))
    await bus.publish('counted', 3, 4)
    await bus.poll(noting(numbers))
    expect(numbers).toEqual([3, 4, 1, 2])
  })
})

describe('what committed', () => {
  it('is claimed, and what was rolled back is not', async () => {
    const numbers: number[] = []
    await sql.begin(async (tx) => {
      await publish(tx, counted({ n: 1 }))
      await tx
        .savepoint(async (inner) => {
          await publish(inner, counted({ n: 2 }))
          throw new Error('back')
        })
        .catch(() => {})
    })
    await expect(
      sql.begin(async (tx) => {
        await publish(tx, counted({ n: 3 }))
        await publish(tx, counted({ n: 4 }), { dueAt: now })
        throw new Error('back')
      }),
    ).rejects.toThrow('back')
    const { claimed } = await bus.poll(noting(numbers))
    expect(numbers).toEqual([1])
    expect(claimed).toBe(1)
  })

  it('late is claimed then, and does not hold others back', async () => {
    const numbers: number[] = []
    const publisher = await connect({ max: 1 }).reserve()
    await publisher`begin`
    await publisher`select loopless.publish('counted', '{"n": 1}')`
    await bus.publish('counted', 2)
    await bus.poll(noting(numbers))
    expect(numbers).toEqual([2])
    await bus.publish('counted', 3)
    await publisher`commit`
    publisher.release()
    await bus.poll(noting(numbers))
    expect(numbers).toEqual([2, 1, 3])
    expect(await bus.poll(noting(numbers))).toMatchObject({ claimed: 0 })
  })
})

describe('several pollers', () => {
  it('skip what another has, new events and deliveries', async () => {
    const numbers: number[] = []
    const other: number[] = []
    await bus.publish('counted', 1, 2, 3, 4)
    await publishDelayed([8, 9])
    let polled = false
    const handler = defineHandler(counted, { concurrency: 1 }, async ({ payload }) => {
      numbers.push(payload.n)
      if (polled) return
      polled = true
      await poll(now, { sql, handlers: defineHandlers(noting(other)) })
    })
    const report = await bus.poll({ handler }, { limits: { events: 2, deliveryShare: 0.5 } })
    expect(numbers).toEqual([1, 2, 8])
    expect(other).toEqual([3, 4, 9])
    expect(report).toMatchObject({ claimed: 3, succeeded: 3 })
  })

  it('at the same time handle each event once', async () => {
    const numbers: number[] = []
    for (let from = 1; from <= 400; from += 40) await bus.publish('counted', ...range(40, from))
    const handlers = defineHandlers(noting(numbers))
    const work = async (): Promise<void> => {
      const one = connect({ max: 1 })
      while ((await poll(now, { sql: one, handlers, limits: { events: 17 } })).claimed > 0);
    }
    await Promise.all([work(), work(), work(), work()])
    expect(numbers.toSorted((a, b) => a - b)).toEqual(range(400))
  })
})

describe('a claim', () => {
  it('is bounded by count', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(12))
    expect(await bus.poll(noting(numbers), { limits: { events: 5 } })).toMatchObject({ claimed: 5 })
    expect(numbers).toEqual(range(5))
  })

  it('is bounded by the bytes of the payloads', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(9)) // {"n" : 1} is 9 bytes
    await bus.poll(noting(numbers), { limits: { bytes: 30 } })
    expect(numbers).toEqual([1, 2, 3])
    await bus.poll(noting(numbers), { limits: { bytes: 36 } })
    expect(numbers).toEqual(range(7))
  })

  it('takes one event that is larger than the bound, and nothing with it', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1_000_000, 2, 3)
    await bus.poll(noting(numbers), { limits: { bytes: 12 } })
    expect(numbers).toEqual([1_000_000])
    await bus.poll(noting(numbers), { limits: { bytes: 1 } })
    expect(numbers).toEqual([1_000_000, 2])
  })

  it('takes no more bytes of deliveries either, and at least one', async () => {
    const numbers: number[] = []
    await publishDelayed(range(6)) // {"n":1} is 7 bytes
    await bus.poll(noting(numbers), { limits: { bytes: 22 } })
    expect(numbers).toEqual([1, 2, 3])
    await bus.poll(noting(numbers), { limits: { bytes: 1 } })
    expect(numbers).toEqual([1, 2, 3, 4])
    await bus.publish('counted', 9)
    await bus.poll(noting(numbers), { limits: { bytes: 30, events: 4, deliveryShare: 0.5 } })
    expect(numbers).toEqual([1, 2, 3, 4, 9, 5, 6])
  })

  it('leases for as long as its poll may take, and a margin', async () => {
    await bus.publish('counted', 1)
    await publishDelayed([2])
    const seen: unknown[] = []
    const handler = defineHandler(counted, { concurrency: 1 }, async () => {
      seen.push(await bus.openBatches(), await bus.deliveries())
    })
    await bus.poll({ handler }, { limits: { seconds: 40, leaseMarginSeconds: 2.5 } })
    expect(seen[0]).toEqual([{ size: 2, leased: true, until: later(42.5) }])
    expect(seen[1]).toMatchObject([{ n: 2, leased: true, dueAt: later(42.5) }])
    expect(await bus.openBatches()).toEqual([])
    expect(await bus.deliveries()).toEqual([])
  })

  it('goes on behind a part of the log whose events somebody has removed', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(4))
    await bus.poll(noting(numbers), { signal: AbortSignal.abort() })
    expect(await bus.openBatches()).toMatchObject([{ size: 4, leased: false }])
    await sql`delete from loopless.event`
    await bus.publish('counted', 5)
    expect(await bus.poll(noting(numbers))).toMatchObject({ claimed: 1, nextDueAt: null })
    expect(numbers).toEqual([5])
  })
})

describe('fairness', () => {
  it('gives due deliveries their share beside a log that never ends, and all of a poll when it does', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(20))
    await publishDelayed(range(20, 101))
    const limits = { events: 10, deliveryShare: 0.2 }
    await bus.poll(noting(numbers), { limits })
    expect(numbers.splice(0)).toEqual([...range(10), 101, 102])
    await bus.poll(noting(numbers), { limits })
    expect(numbers.splice(0)).toEqual([...range(10, 11), 103, 104])
    await bus.poll(noting(numbers), { limits })
    expect(numbers.splice(0)).toEqual(range(10, 105))
  })

  it('gives deliveries one place at least', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2)
    await publishDelayed([8, 9])
    await bus.poll(noting(numbers), { limits: { events: 1, deliveryShare: 0.01 } })
    expect(numbers).toEqual([1, 8])
  })

  it('takes the deliveries that have waited longest', async () => {
    const numbers: number[] = []
    await publishDelayed([1], later(-1))
    await publishDelayed([2], later(-3))
    await publishDelayed([3], later(-2))
    for (let polls = 0; polls < 3; polls++) await bus.poll(noting(numbers), { limits: { events: 1 } })
    expect(numbers).toEqual([2, 3, 1])
  })

  it('does not spend a poll on a part of the log that holds delayed events only', async () => {
    const numbers: number[] = []
    await publishDelayed(range(6), later(60))
    await bus.publish('counted', 7)
    expect(await bus.poll(noting(numbers), { limits: { events: 2 } })).toMatchObject({ claimed: 1 })
    expect(numbers).toEqual([7])
  })
})

describe('a session above READ COMMITTED', () => {
  it.each(['repeatable read', 'serializable'] as const)('is refused: %s', async (isolation) => {
    const numbers: number[] = []
    await bus.publish('counted', 1)
    const session = connect({ max: 1, connection: { default_transaction_isolation: isolation } })
    await expect(
      poll(now, { sql: session, handlers: defineHandlers(noting(numbers)) }),
    ).rejects.toMatchObject({
      name: 'DatabaseError',
      sqlState: 'LL012',
      message: expect.stringContaining(isolation),
    })
    await bus.poll(noting(numbers))
    expect(numbers).toEqual([1])
  })
})

describe('the registered handlers', () => {
  it('are the only ones that claim, new events, deliveries and what runs alone', async () => {
    const numbers: number[] = []
    const handlers = noting(numbers)
    await register(sql, defineHandlers({ ...handlers, added: defineHandler('*', {}, () => {}) }), now)
    await bus.publish('counted', 1)
    await publishDelayed([2])
    await publishDelayed([3])
    await sql`update loopless.delivery set alone = true where event_id = (select max(event_id) from loopless.delivery)`
    await expect(bus.poll(handlers)).rejects.toMatchObject({
      name: 'HandlerSetError',
      code: 'HANDLER_SET_NOT_REGISTERED',
      message: expect.stringContaining('loopless register'),
    })
    expect(numbers).toEqual([])
    expect(await bus.openBatches()).toEqual([])
    expect(await bus.deliveries()).toMatchObject([{ leased: false }, { leased: false }])
    await register(sql, defineHandlers(handlers), now)
    await bus.poll(handlers)
    expect(numbers).toEqual([1, 2, 3])
  })

  it('are not asked for as long as none are registered', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1)
    await bus.poll(noting(numbers))
    expect(numbers).toEqual([1])
  })
})

it('uses one connection, and leaves no transaction open while a plain handler runs', async () => {
  const states: unknown[] = []
  const [backend] = await poller<{ pid: number }[]>`select pg_backend_pid() as pid`
  await bus.publish('counted', 1)
  const handler = defineHandler(counted, {}, async () => {
    states.push(...(await sql`select state from pg_stat_activity where pid = ${backend?.pid ?? 0}`))
  })
  await bus.poll({ handler })
  expect(states).toEqual([{ state: 'idle' }])
})
