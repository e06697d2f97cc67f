import { availableParallelism } from 'node:os'
import { connect, type Sql } from '../src/index.ts'
import { type LambdaProcesses, startLambdaProcesses } from '../tests/support/lambda-processes.ts'
import { startFar } from './far.ts'
import { type Bench, type Figure, median, rateOf } from './figure.ts'
import { fillLog } from './log.ts'
import { drainTogether, startPoller } from './pollers.ts'

const count = 100_000
const numbers = [1, 2, 4]
/** Rounds that do not count, by all pollers: those that drained less would run code that is optimized less. */
const warmUps = 8

/** A long backlog drained by 1, 2 and 4 pollers: started by hand, near and far, and by hand-off through Invoke. */
export async function pollersTogether(bench: Bench): Promise<Figure[]> {
  return [...(await startedFar(bench)), ...(await startedNear(bench)), ...(await handedOff(bench))]
}

/** As far from the database as a Lambda is. */
async function startedFar({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_far_pollers')
  const far = await startFar(url)
  const rates = await started({ url, pollersUrl: far.url, rounds })
  far.close()
  return figuresOf('drain of 100,000, no-op handler, the database 1 ms away', rates)
}

/** Beside the database; more processes than the machine has cores say nothing of more pollers. */
async function startedNear({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_near_pollers')
  const rates = await started({ url, pollersUrl: url, rounds })
  const mostThatCount = availableParallelism() / 2 // one for the poller, one for its session
  return figuresOf('drain of 100,000, no-op handler', rates, mostThatCount)
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
  const rates = new Map<number, number[]>(numbers.map((number) => [number, []]))
  const drainWith = async (number: number): Promise<number> => {
    await fillLog(sql, 'loopless.event', count)
    return rateOf(() => drainTogether(pollers.slice(0, number)))
  }
  for (let round = 0; round < warmUps; round++) await drainWith(4)
  for (let round = 0; round < rounds; round++) {
    for (const number of numbers) rates.get(number)?.push(await drainWith(number))
  }
  for (const poller of pollers) poller.disconnect()
  await sql.end()
  return rates
}

/** A woken poller that invokes helpers, each in a process of its own; throws unless each event was handled once. */
async function handedOff({ server, rounds }: Bench): Promise<Figure[]> {
  const rates = new Map<number, number[]>(numbers.map((number) => [number, []]))
  const buses = await Promise.all(
    numbers.map(async (number) =>
      openHandOff(await server.createDatabase(`bench_handoff_${number}`), number),
    ),
  )
  for (let round = 0; round <= rounds; round++) {
    for (const bus of buses) {
      const rate = await handOff(bus)
      if (round > 0) rates.get(bus.number)?.push(rate)
    }
  }
  for (const { lambda, sql } of buses) await Promise.all([lambda.close(), sql.end()])
  return figuresOf('hand-off of 100,000 by Invoke, transactional insert', rates)
}

/** A bus that up to `number` pollers drain. */
interface HandOff {
  readonly number: number
  readonly sql: Sql
  readonly lambda: LambdaProcesses
}

async function openHandOff(databaseUrl: string, number: number): Promise<HandOff> {
  const sql = connect(databaseUrl, { statementTimeoutMs: 0 })
  await sql`drop table public.effect`
  await sql`create table public.effect (event_id bigint not null)`
  const options = { databaseUrl, concurrency: number, maxPollers: number, ms: 5_000 }
  return { number, sql, lambda: await startLambdaProcesses(options) }
}

/** @returns events a second */
async function handOff({ number, sql, lambda }: HandOff): Promise<number> {
  await sql`truncate loopless.event, public.effect`
  await sql`insert into loopless.event (name, payload) select 'wake.published', '{}' from generate_series(1, ${count}::int)`
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

/** Each number against the one before it, to be no slower; up to a number of pollers. */
function figuresOf(
  what: string,
  rates: ReadonlyMap<number, ReadonlyArray<number>>,
  most = Number.POSITIVE_INFINITY,
): Figure[] {
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
      target: number <= most ? { atLeast: 1 } : null,
    }
  })
}
