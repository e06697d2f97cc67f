import { channel } from 'node:diagnostics_channel'
import { afterAll, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { type ProxyMessage, startProxy, type Verdict } from '../tests/support/proxy.ts'
import { statementReader } from '../tests/support/statements.ts'
import { claim } from './claim.ts'
import { type ConnectOptions, connect } from './db/client.ts'
import { type DrainOptions, type DrainReport, drain } from './drain.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type Handler, type HandlerOptions } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { register } from './register.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

// While a poll is settled the next one claims: a drain of batches of ten shows it.

const bus = await testBus()
const { sql, poller } = bus
const proxy = await startProxy(bus.url)
afterAll(() => proxy.close())

const counted = defineEvent<{ n: number }>('counted')

/** The only time that passes here: what the tests let pass. */
let passedMs = 0
vi.spyOn(performance, 'now').mockImplementation(() => passedMs)

beforeEach(() => {
  proxy.judge(() => 'forward')
  passedMs = 0
})

function pass(ms: number): void {
  passedMs += ms
}

function clock(): Date {
  return later(passedMs / 1_000)
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index + 1)
}

/** A handler, one event at a time, that notes the numbers of the events it gets, and then does something. */
function noting(
  numbers: number[],
  act: (n: number) => unknown = () => {},
  options: SingleOptions = {},
): Handler {
  return defineHandler(counted, { concurrency: 1, jitter: 0, ...options }, ({ payload }) => {
    numbers.push(payload.n)
    return act(payload.n)
  })
}

function drainTens(h: Handler, options: Partial<DrainOptions> = {}): Promise<DrainReport> {
  return drain({
    sql: poller,
    handlers: defineHandlers({ h }),
    clock,
    deadline: later(600),
    limits: { events: 10 },
    ...options,
  })
}

/** A poller of its own, through the proxy. */
function away(options?: ConnectOptions): ReturnType<typeof connect> {
  const client = connect(proxy.url, options)
  onTestFinished(() => client.end({ timeout: 1 }))
  return client
}

/** Does something once the first poll is settled and announced, while the second one claims. */
function onceSettled(act: () => void): void {
  const polled = channel('loopless:polled')
  const heard = (): void => {
    polled.unsubscribe(heard)
    act()
  }
  polled.subscribe(heard)
}

function on(act: (n: number) => unknown, ...numbers: number[]): (n: number) => unknown {
  return (n) => (numbers.includes(n) ? act(n) : undefined)
}

describe('the claim of the next poll', () => {
  const sequenceOf = async (client: ReturnType<typeof connect>): Promise<string> => {
    const read = statementReader()
    const seen: string[] = []
    proxy.judge((message) => {
      const name = /loopless\.(lease|read|settle)(?:_leased)?\(/.exec(read(message) ?? '')?.[1]
      if (name) seen.push(name)
      if (message.type === 'C' && message.from === 'server' && seen.length > 0) seen.push('answer')
      return 'forward'
    })
    await bus.publish('counted', ...range(4))
    const report = await drainTens(noting([]), { sql: client, limits: { events: 1 } })
    expect(report).toMatchObject({ polls: 5, succeeded: 4, drained: true })
    return seen.join(' ')
  }
  const inTurn = `${'lease answer read answer settle answer '.repeat(4)}lease answer`

  it('is sent behind the settlement, as soon as the driver has prepared it', async () => {
    const prepares = 'lease answer read answer settle answer lease read answer answer '
    const ahead = 'settle lease read answer answer answer '
    expect(await sequenceOf(away())).toBe(prepares + ahead.repeat(3).trim())
  })

  it('waits for the settlement where a pooler keeps no prepared statements', async () => {
    expect(await sequenceOf(away({ prepare: false }))).toBe(inTurn)
  })

  it('waits for the settlement where it could get another connection', async () => {
    expect(await sequenceOf(away({ max: 2 }))).toBe(inTurn)
  })

  it('sees what was settled: a retry that is due at once', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1)
    const fail = (): never => {
      throw new Error('no')
    }
    const h = noting(numbers, fail, { baseDelaySeconds: 0, maxAttempts: 4 })
    expect(await drainTens(h, { clock: () => now })).toMatchObject({
      polls: 5,
      retried: 3,
      dead: 1,
      drained: true,
    })
    expect(numbers).toEqual([1, 1, 1, 1])
  })

  it('goes by the clock of its own time: its handlers’ now, its lease', async () => {
    const seen: unknown[] = []
    await bus.publish('counted', ...range(20))
    const h = defineHandler(counted, { concurrency: 1 }, async ({ payload }, context) => {
      if (payload.n === 10) pass(10_000)
      if (payload.n !== 1 && payload.n !== 11) return
      const [{ until } = { until: now }] = await bus.openBatches()
      seen.push([context.now, until])
    })
    const limits = { events: 10, seconds: 30, leaseMarginSeconds: 5 }
    await drainTens(h, { limits })
    expect(seen).toEqual([
      [now, later(35)],
      [later(10), later(45)],
    ])
  })

  it('comes after what must run alone', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2)
    const limits = { events: 500, bytes: 1_000, deliveries: 10, handlerSet: '' }
    await claim(sql, { ...limits, now: later(-90), until: later(-15) }) // and is never heard of again
    await bus.publish('counted', ...range(12).map((n) => n + 10))
    const open: unknown[] = []
    const look = async () => open.push(...(await bus.openBatches()))
    await drainTens(noting(numbers, on(look, 1, 2)))
    expect(numbers).toEqual([...range(10).map((n) => n + 10), 1, 2, 21, 22])
    expect(open).toEqual([])
  })

  it('is not made when something had to be given back: the time may be over', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(30))
    const h = noting(numbers, () => pass(1_000))
    const report = await drainTens(h, { deadline: later(14.5) })
    expect(report).toMatchObject({ polls: 2, succeeded: 12, released: 3, drained: false })
    await poller`select 1` // behind whatever was sent
    expect(await bus.openBatches()).toMatchObject([{ size: 3, leased: false }])
  })

  it('takes nothing that the deadline leaves no time for', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(20))
    const h = noting(
      numbers,
      on(() => pass(60_000), 10),
    )
    expect(await drainTens(h, { deadline: later(61) })).toMatchObject({
      polls: 1,
      claimed: 10,
      released: 0,
      drained: false,
    })
    expect(await bus.openBatches()).toEqual([])
  })
})

describe('what was claimed ahead', () => {
  /** Ten events are free at once, and nobody was charged. */
  const expectFree = async (at = now): Promise<void> => {
    expect(await bus.openBatches()).toMatchObject([{ size: 10, leased: false }])
    expect(await bus.attempts()).toEqual([])
    const numbers: number[] = []
    expect(await bus.poll({ h: noting(numbers) }, { at })).toMatchObject({ claimed: 10, repaired: 0 })
    expect(numbers).toEqual(range(20).slice(10))
  }

  it('is given back when the signal ends the drain', async () => {
    const controller = new AbortController()
    const numbers: number[] = []
    await bus.publish('counted', ...range(20))
    onceSettled(() => controller.abort())
    const report = await drainTens(noting(numbers), { signal: controller.signal })
    expect(report).toMatchObject({
      polls: 2,
      claimed: 20,
      succeeded: 10,
      released: 10,
      drained: false,
      nextDueAt: now,
    })
    expect(numbers).toEqual(range(10))
    await expectFree()
  })

  it('is given back when the deadline passes meanwhile', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(20))
    onceSettled(() => pass(600_000))
    const report = await drainTens(noting(numbers))
    expect(report).toMatchObject({ claimed: 20, succeeded: 10, released: 10, drained: false })
    expect(numbers).toEqual(range(10))
    await expectFree(later(600))
  })

  it('is given back when what the caller does after a poll fails', async () => {
    await bus.publish('counted', ...range(20))
    const onPoll = () => Promise.reject(new Error('as told'))
    await expect(drainTens(noting([]), { onPoll })).rejects.toThrow('as told')
    await expectFree()
  })

  it('is given back, and claimed again, when the settlement finds its lease lost', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(20))
    const steal = () =>
      sql`update loopless.batch set lease = gen_random_uuid() where lease is not null and settled_at is null`
    const report = await drainTens(noting(numbers, on(steal, 10)))
    expect(report).toMatchObject({ leasesLost: 1, claimed: 10, succeeded: 10, released: 0 })
    expect(numbers).toEqual(range(20))
    expect(await bus.attempts()).toEqual([])
  })

  it('is given back when the settlement fails', async () => {
    await bus.publish('counted', ...range(20))
    const failing = noting(
      [],
      on(async () => {
        pass(100)
        await sql`alter table loopless.attempt rename to attempt_gone`
        throw new Error('would be recorded')
      }, 10),
    )
    await expect(drainTens(failing)).rejects.toMatchObject({ name: 'SchemaMissingError' })
    await sql`alter table loopless.attempt_gone rename to attempt`
    const free = { size: 10, leased: false }
    expect(await bus.openBatches()).toMatchObject([free, free])
    const numbers: number[] = []
    await drainTens(noting(numbers))
    expect(numbers).toEqual(range(20))
    expect(await bus.attempts()).toEqual([])
  })
})

describe('a claim ahead that fails', () => {
  it('because other handlers are registered ends the drain, once what was handled is settled', async () => {
    const numbers: number[] = []
    const announced: unknown[] = []
    await bus.publish('counted', ...range(20))
    onceSettled(() => announced.push('settled'))
    const other = defineHandlers({ other: noting([]) })
    const draining = drainTens(
      noting(
        numbers,
        on(() => register(sql, other, now), 10),
      ),
    )
    await expect(draining).rejects.toMatchObject({ code: 'HANDLER_SET_NOT_REGISTERED' })
    expect(numbers).toEqual(range(10))
    expect(announced).toEqual(['settled'])
    expect(await bus.openBatches()).toEqual([])
    expect(await bus.deliveries()).toEqual([])
  })

  it('because its connection is lost is made again', async () => {
    const numbers: number[] = []
    await bus.publish('counted', ...range(40))
    const read = statementReader()
    let claims = 0
    const cutFourth = (message: ProxyMessage): Verdict =>
      read(message)?.includes('loopless.lease(') && ++claims === 4 ? 'cut' : 'forward'
    proxy.judge(cutFourth)
    const report = await drainTens(noting(numbers), { sql: away() })
    expect(report).toMatchObject({ polls: 5, succeeded: 40, leasesLost: 0, drained: true })
    expect(claims).toBe(6)
    expect(numbers).toEqual(range(40))
  })
})
