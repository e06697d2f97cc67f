import { connect, type Sql } from '../src/index.ts'
import { startLambdaProcesses } from '../tests/support/lambda-processes.ts'
import { type Bench, type Figure, median, rateOf } from './figure.ts'
import { fillLog } from './log.ts'
import { drainTogether, startPoller } from './pollers.ts'

const count = 100_000
const numbers = [1, 2, 4]
/** Rounds that do not count, by all pollers: those that drained less would run code that is optimized less. */
const warmUps = 8

/** A long backlog drained by 1, 2 and 4 pollers: started by hand, and by hand-off through Invoke. */
export async function pollersTogether(bench: Bench): Promise<Figure[]> {
  return [...(await started(bench)), ...(await handedOff(bench))]
}

async function started({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_pollers')
  const sql = connect(url, { statementTimeoutMs: 0 })
  const pollers = await Promise.all(Array.from({ length: 4 }, () => startPoller(url, 'idle')))
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
  return figuresOf('drain of 100,000, no-op handler', rates)
}

/** A woken poller that invokes helpers, each in a process of its own; throws unless each event was handled once. */
async function handedOff({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_handoff')
  const sql = connect(url, { statementTimeoutMs: 0 })
  await sql`drop table public.effect`
  await sql`create table public.effect (event_id bigint not null)`
  const rates = new Map<number, number[]>(numbers.map((number) => [number, []]))
  for (const number of numbers) {
    const lambda = await startLambdaProcesses({
      databaseUrl: url,
      concurrency: number,
      maxPollers: number,
      ms: 5_000,
    })
    for (let round = 0; round <= rounds; round++) {
      await sql`truncate loopless.event, public.effect`
      await sql`insert into loopless.event (name, payload) select 'wake.published', '{}' from generate_series(1, ${count}::int)`
      const rate = await rateOf(async () => {
        lambda.invoke('wake')
        await lambda.quiet()
        return count
      })
      await expectOnce(sql, number)
      if (round > 0) rates.get(number)?.push(rate)
    }
    await lambda.close()
  }
  await sql.end()
  return figuresOf('hand-off of 100,000 by Invoke, transactional insert', rates)
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

/** Each number against the one before it. */
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
