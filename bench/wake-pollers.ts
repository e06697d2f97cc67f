import { startFar } from './far.ts'
import { type Bench, type Figure, median, ratiosOf } from './figure.ts'
import { openHandOffs } from './hand-off.ts'
import { openPollers } from './pollers.ts'
import { drainInTurn, type Rates, type Way } from './ways.ts'

const count = 100_000
const numbers = [1, 2, 4]
const warmUps = 8

/**
 * A long backlog drained by 1, 2 and 4 pollers: started together, and by hand-off through Invoke; as far from the database
 * as a Lambda is, and beside it. There the pollers and their sessions share the machine's cores, and the raw loop, by as many,
 * tells what is lost by more processes than cores.
 */
export async function* pollersTogether(bench: Bench): AsyncIterable<Figure> {
  yield* await startedFar(bench)
  yield* await startedNear(bench)
  yield* await handedOffFar(bench)
  yield* await handedOffNear(bench)
}

async function startedFar({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_far_pollers')
  const far = await startFar(server.url)
  const pollersUrl = far.through(url)
  const [rates] = await drainInTurn(
    rounds,
    await openPollers(numbers, { url, pollersUrl, kind: 'idle', count, warmUps }),
  )
  far.close()
  return figuresOf('drain of 100,000, no-op, 1 ms away', rates)
}

async function startedNear({ server, rounds }: Bench): Promise<Figure[]> {
  const url = await server.createDatabase('bench_near_pollers')
  const options = { url, pollersUrl: url, count, warmUps }
  const [rates, raw] = await drainInTurn(
    5 * rounds, // of half a second each
    await openPollers(numbers, { ...options, kind: 'idle' }),
    await openPollers(numbers, { ...options, kind: 'raw idle' }),
  )
  return figuresOf('drain of 100,000, no-op, beside', rates, raw)
}

/** The handler inserts the events of a poll at once. */
async function handedOffFar({ server, rounds }: Bench): Promise<Figure[]> {
  const far = await startFar(server.url)
  const [rates] = await drainInTurn(
    rounds,
    await openHandOffs(server, numbers, { event: 'wake.batched', count, wayTo: (url) => far.through(url) }),
  )
  far.close()
  return figuresOf('hand-off of 100,000, inserting batches, 1 ms away', rates)
}

/** The handler inserts each event. */
async function handedOffNear({ server, rounds }: Bench): Promise<Figure[]> {
  const [rates, raw] = await drainInTurn(
    rounds,
    await openHandOffs(server, numbers, { event: 'wake.published', count, wayTo: (url) => url }),
    await openRawInserting(server),
  )
  return figuresOf('hand-off of 100,000, inserting each, beside', rates, raw)
}

async function openRawInserting({ createDatabase }: Bench['server']): Promise<Way> {
  const url = await createDatabase('bench_raw_inserting')
  return openPollers(numbers, { url, pollersUrl: url, kind: 'raw inserting', count, warmUps: 2 })
}

/**
 * What each number of pollers gets, and that more are no slower. Beside the database: no slower than the raw loop becomes
 * by as many, but for a tenth, by which medians of the same differ from run to run.
 */
function figuresOf(what: string, rates: Rates | undefined, raw?: Rates): Figure[] {
  const of = (all: Rates | undefined, number: number): ReadonlyArray<number> => all?.get(number) ?? []
  return numbers.flatMap((number, place): Figure[] => {
    const rate: Figure = {
      what: `${what}, ${number} poller${number > 1 ? 's' : ''}`,
      value: median(of(rates, number)),
      unit: 'events/s',
      peer: raw ? median(of(raw, number)) : null,
      ratio: raw ? median(ratiosOf(of(rates, number), of(raw, number))) : null,
      target: null,
    }
    const fewer = numbers[place - 1]
    if (fewer === undefined) return [rate]
    const rawGain = raw ? median(ratiosOf(of(raw, number), of(raw, fewer))) : null
    const gain: Figure = {
      what: `the same, ${number} against ${fewer}`,
      value: median(ratiosOf(of(rates, number), of(rates, fewer))),
      unit: '',
      peer: rawGain,
      ratio: null,
      target: { atLeast: rawGain === null ? 1 : 0.9 * Math.min(1, rawGain) },
    }
    return [rate, gain]
  })
}
