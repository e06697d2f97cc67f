import { setTimeout as sleep } from 'node:timers/promises'
import { installAwsLambda } from '../infra/local/aws-lambda.ts'
import {
  attend,
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  publish,
  type Sql,
} from '../src/index.ts'
import type { Benchmark, Figure } from './figure.ts'
import { median } from './figure.ts'
import { publisherCost } from './publisher-cost.ts'
import { throughOffline } from './wake-offline.ts'
import { pollersTogether } from './wake-pollers.ts'

const commits = 200
const published = defineEvent('bench.published')

/** Waking in this process: from a commit to its handler, invocations a burst; then what publishers pay, and many pollers. */
export const waking: Benchmark = async function* (bench) {
  const url = await bench.server.createDatabase('bench_wake')
  const bus = await startWakes(url)
  yield* await latency(bus, url)
  yield* await throughOffline(bench)
  yield* bursts(bus, url)
  await bus.stop()
  yield* publisherCost(bench)
  yield* pollersTogether(bench)
}

interface Wakes {
  /** performance.now() at which the handler of each event began. */
  readonly beganMs: ReadonlyMap<string, number>
  /** Pollers that were invoked so far. */
  invocations(): number
  /** Resolves when no poller is awake. */
  idle(): Promise<void>
  stop(): Promise<void>
}

/** Lambda with one warm environment, in this process: the stand-in's notification invokes an attendance. */
async function startWakes(url: string): Promise<Wakes> {
  const sql = connect(url, { max: 2 })
  const poller = connect(url)
  await installAwsLambda(sql, 'at the commit')
  await sql`select loopless.set_wake(now(), 'bench')`
  const beganMs = new Map<string, number>()
  const handlers = defineHandlers({
    note: defineHandler(published, {}, async ({ id }) => {
      beganMs.set(id, performance.now())
    }),
  })
  let invocations = 0
  let running: Promise<unknown> | undefined
  const receive = async (): Promise<void> => {
    const [row] = await sql<{ begun: boolean }[]>`select loopless.begin_waking() as begun`
    if (!row?.begun) return
    await running
    invocations++
    const clock = (): Date => new Date()
    const deadline = new Date(Date.now() + 60_000)
    running = attend({ sql: poller, handlers, clock, deadline, lingerMs: 0 }).finally(() => {
      running = undefined
    })
  }
  await sql.listen('aws_lambda', () => void receive())
  return {
    beganMs,
    invocations: () => invocations,
    async idle() {
      while (running !== undefined) await running
    },
    async stop() {
      await sql.end({ timeout: 1 })
      await poller.end({ timeout: 1 })
    },
  }
}

async function latency({ beganMs, idle }: Wakes, url: string): Promise<Figure[]> {
  const publisher = connect(url)
  const delays: number[] = []
  for (let count = 0; count < commits + 20; count++) {
    const id = await publisher.begin((tx) => publish(tx, published({})))
    const committedMs = performance.now()
    while (!beganMs.has(id)) await sleep(1)
    if (count >= 20) delays.push((beganMs.get(id) ?? Number.NaN) - committedMs)
    await idle()
  }
  await publisher.end()
  const sorted = delays.toSorted((one, other) => one - other)
  const at = (share: number): number =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
  const one = { unit: 'ms', peer: null, ratio: null } as const
  return [
    {
      what: `idle bus, commit to handler in process, median of ${commits}`,
      value: median(delays),
      ...one,
      target: { atMost: 10 },
    },
    { what: 'the same, 99th percentile', value: at(0.99), ...one, target: { atMost: 50 } },
  ]
}

async function* bursts(bus: Wakes, url: string): AsyncIterable<Figure> {
  const publishers = Array.from({ length: 8 }, () => connect(url))
  await Promise.all(publishers.map((sql) => sql`select 1`))
  for (const transactions of [1, 10, 100, 1_000]) {
    await bus.idle()
    const before = bus.invocations()
    const handledBefore = bus.beganMs.size
    let left = transactions
    const publishSome = async (sql: Sql): Promise<void> => {
      while (left-- > 0) await sql.begin((tx) => publish(tx, published({})))
    }
    await Promise.all(publishers.map(publishSome))
    while (bus.beganMs.size < handledBefore + transactions) await sleep(1)
    await bus.idle()
    yield {
      what: `invocations for a burst of ${transactions.toLocaleString('en-US')} transactions by 8 publishers`,
      value: bus.invocations() - before,
      unit: '',
      peer: null,
      ratio: null,
      target: transactions === 1_000 ? { atMost: 10 } : null,
    }
  }
  await Promise.all(publishers.map((sql) => sql.end()))
}
