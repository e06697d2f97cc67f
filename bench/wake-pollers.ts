import { connect, type Sql } from '../src/index.ts'
import { type LambdaProcesses, startLambdaProcesses } from '../tests/support/lambda-processes.ts'
import { startFar } from './far.ts'
import { type Bench, type Figure, median, rateOf } from './figure.ts'
import { fillLog } from './log.ts'
import { drainTogether, startPoller } from './pollers.ts'
import type { BenchServer } from './server.ts'

const count = 100_000
const numbers = [1, 2, 4]
/** Rounds that do not count, by all pollers: those that drained less would run code that is optimized less. */
const warmUps = 8
/** The same by hand-off. */
const handOffWarmUps = 3

/** A long backlog drained by 1, 2 and 4 pollers: started by hand, and by hand-off through Invoke; far and near. */
export async function pollersTogether(bench: Bench): Promise<Figure[]> {
  return [
    ...(await startedFar(bench)),
    ...(await startedNear(bench)),
    ...(await handedOffFar(bench)),
    ...(await handedOffNear(bench)),
  ]
}

/** As far from the database as a Lambda is. */
async function startedFar({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_far_pollers')
  const far = await startFar(server.url)
  const rates = await started({ url, pollersUrl: far.through(url), rounds })
  far.close()
  return figuresOf('drain of 100,000, no-op handler, the database 1 ms away', rates)
}

/** Beside the database: 4 pollers and their sessions are eight busy processes. */
async function startedNear({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_near_pollers')
  const rates = await started({ url, pollersUrl: url, rounds })
  return figuresOf('drain of 100,000, no-op handler', rates)
}

interface Started {
  /** The database. */
  readonly url: string
  /** The database for pollers. */
  readonly pollersUrl: string
  readonly rounds: number
}

/** Events a second, by the number of pollers. */
async function started({ url, pollersUrl, rounds }: Started): Promise<Map<number, number[]>> {
  const sql = connect(url, { statementTimeoutMs: 0 })
  const pollers = await Promise.all(Array.from({ length: 4 }, () => startPoller(pollersUrl, 'idle')))
  const drainWith = async (number: number): Promise<number> => {
    await fillLog(sql, 'loopless.event', count)
    return rateOf(() => drainTogether(pollers.slice(0, number)))
  }
  for (let round = 0; round < warmUps; round++) await drainWith(4)
  const rates = await inTurn(rounds, numbers, drainWith)
  for (const poller of pollers) poller.disconnect()
  await sql.end()
  return rates
}

/** The same by hand-off: the handler inserts the events of a poll at once. */
async function handedOffFar({ server, rounds }: Bench): Promise<Figure[]> {
  const far = await startFar(server.url)
  const buses = await openBuses(server, 'wake.batched', (url) => far.through(url))
  const rates = await handedOff(buses, rounds)
  far.close()
  return figuresOf('hand-off of 100,000 by Invoke, inserting batches, 1 ms away', rates)
}

/** Beside the database; the handler inserts each event. */
async function handedOffNear({ server, rounds }: Bench): Promise<Figure[]> {
  const rates = await handedOff(await openBuses(server, 'wake.published', (url) => url), rounds)
  return figuresOf('hand-off of 100,000 by Invoke, inserting each', rates)
}

/** A bus that up to `number` pollers drain: one that was woken, and the helpers that it invokes, each in its process. */
interface Bus {
  readonly number: number
  readonly event: string
  readonly sql: Sql
  readonly lambda: LambdaProcesses
}

/** One for each number: who was at work on the one before would count as at work on the next. */
function openBuses(server: BenchServer, event: string, wayTo: (url: string) => string): Promise<Bus[]> {
  return Promise.all(
    numbers.map(async (number): Promise<Bus> => {
      const url = await server.createDatabase(`bench_${event.replace('.', '_')}_${number}`)
      const sql = connect(url, { statementTimeoutMs: 0 })
      await sql`drop table public.effect`
      await sql`create table public.effect (event_id bigint not null)`
      const options = { databaseUrl: wayTo(url), concurrency: number, maxPollers: number, ms: 5_000 }
      return { number, event, sql, lambda: await startLambdaProcesses(options) }
    }),
  )
}

/** Events a second, by the number of pollers. */
async function handedOff(buses: ReadonlyArray<Bus>, rounds: number): Promise<Map<number, number[]>> {
  await inTurn(handOffWarmUps, buses, handOff)
  const byBus = await inTurn(rounds, buses, handOff)
  const rates = new Map([...byBus].map(([{ number }, ofBus]) => [number, ofBus]))
  for (const { lambda, sql } of buses) await Promise.all([lambda.close(), sql.end()])
  return rates
}

/** Throws unless each event was handled once. */
async function handOff({ number, event, sql, lambda }: Bus): Promise<number> {
  await sql`truncate loopless.event, public.effect`
  await sql`insert into loopless.event (name, payload) select ${event}, '{}' from generate_series(1, ${count}::int)`
  const rate = await rateOf(async () => {
    lambda.invoke('wake')
    await lambda.quiet()
    return count
  })
  await expectOnce(sql, number)
  return rate
}

async function expectOnce(sql: Sql, number: number): Promise<void> {
  const [row] = await sql<{ effects: number; events: number }[]>`
    select count(*)::int as effects, count(distinct event_id)::int as events from public.effect`
  const { effects = 0, events = 0 } = row ?? {}
  if (effects === count && events === count) return
  throw new Error(
    `Expected each of ${count} events to be handled once by ${number} pollers, got ${effects} effects of ${events} events.`,
  )
}

/** Drains with each in turn, a number of rounds, so that whatever else the machine does meets all. @returns rates of each */
async function inTurn<Way>(
  rounds: number,
  ways: ReadonlyArray<Way>,
  drainBy: (way: Way) => Promise<number>,
): Promise<Map<Way, number[]>> {
  const rates = new Map<Way, number[]>(ways.map((way) => [way, []]))
  for (let round = 0; round < rounds; round++) {
    for (const way of ways) rates.get(way)?.push(await drainBy(way))
  }
  return rates
}

/** Each number against the one before it, to be no slower. */
function figuresOf(what: string, rates: ReadonlyMap<number, ReadonlyArray<number>>): Figure[] {
  return numbers.map((number, place) => {
    const value = median(rates.get(number) ?? [])
    const fewer = numbers[place - 1]
    const unit = 'events/s'
    if (fewer === undefined)
      return { what: `${what}, ${number} poller`, value, unit, peer: null, ratio: null, target: null }
    const peer = median(rates.get(fewer) ?? [])
    return {
      what: `${what}, ${number} pollers against ${fewer}`,
      value,
      unit,
      peer,
      ratio: value / peer,
      target: { atLeast: 1 },
    }
  })
}
