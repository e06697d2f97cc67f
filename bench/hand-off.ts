import { connect, type Sql } from '../src/index.ts'
import { type LambdaProcesses, startLambdaProcesses } from '../tests/support/lambda-processes.ts'
import { rateOf } from './figure.ts'
import type { BenchServer } from './server.ts'
import type { Way } from './ways.ts'

/** A bus that up to `pollers` drain: one that was woken, and the helpers that it invokes, each in its process. */
interface Bus {
  readonly pollers: number
  readonly event: string
  /** Events in the log. */
  readonly count: number
  readonly sql: Sql
  readonly lambda: LambdaProcesses
}

export interface HandOffOptions {
  /** Which its handler takes: `wake.published` one by one, `wake.batched` in batches. */
  readonly event: 'wake.published' | 'wake.batched'
  /** Events in the log. */
  readonly count: number
  /** The url for pollers, made of the database's. */
  readonly wayTo: (url: string) => string
}

/** A bus for each number of pollers: who was at work on the one before would count as at work on the next. */
export async function openHandOffs(
  server: BenchServer,
  numbers: ReadonlyArray<number>,
  { event, count, wayTo }: HandOffOptions,
): Promise<Way> {
  const open = async (pollers: number): Promise<Bus> => {
    const url = await server.createDatabase(`bench_${event.replace('.', '_')}_${pollers}`)
    const sql = connect(url, { statementTimeoutMs: 0 })
    await sql`drop table public.effect`
    await sql`create table public.effect (event_id bigint not null)`
    const options = { databaseUrl: wayTo(url), concurrency: pollers, maxPollers: pollers, ms: 5_000 }
    return { pollers, event, count, sql, lambda: await startLambdaProcesses(options) }
  }
  const buses = await Promise.all(numbers.map(open))
  const byNumber = new Map(buses.map((bus) => [bus.pollers, bus]))
  // drains that do not count, until each process has run its code as often as those of the other buses
  for (const bus of buses) for (let round = 0; round < bus.pollers; round++) await handOff(bus)
  return {
    numbers,
    async drain(pollers) {
      const bus = byNumber.get(pollers)
      if (bus === undefined) throw new Error(`There is no bus for ${pollers} pollers.`)
      return handOff(bus)
    },
    async close() {
      for (const { lambda, sql } of buses) await Promise.all([lambda.close(), sql.end()])
    },
  }
}

/** Throws unless each event was handled once. */
async function handOff({ pollers, event, count, sql, lambda }: Bus): Promise<number> {
  await sql`truncate loopless.event, public.effect`
  await sql`insert into loopless.event (name, payload) select ${event}, '{}' from generate_series(1, ${count}::int)`
  const rate = await rateOf(async () => {
    lambda.invoke('wake')
    await lambda.quiet()
    return count
  })
  await expectOnce(sql, count, pollers)
  return rate
}

async function expectOnce(sql: Sql, count: number, pollers: number): Promise<void> {
  const [row] = await sql<{ effects: number; events: number }[]>`
    select count(*)::int as effects, count(distinct event_id)::int as events from public.effect`
  const { effects = 0, events = 0 } = row ?? {}
  if (effects === count && events === count) return
  throw new Error(
    `Expected each of ${count} events to be handled once by ${pollers} pollers, got ${effects} effects of ${events} events.`,
  )
}
