import { connect, type Sql } from '../src/index.ts'
import { startFar } from './far.ts'
import { type Benchmark, compare, type Figure, median, rateOf } from './figure.ts'
import { appendEvents, drainLog, fillLog, idleHandlers } from './log.ts'
import { drainRaw } from './raw-loop.ts'
import { walBytesOf } from './server.ts'

const count = 50_000

/** A handler that does nothing, against the raw loop of claim and settle at the same batch size. */
export const draining: Benchmark = async function* ({ server, rounds }) {
  const url = await server.createDatabase('bench_drain')
  const sql = connect(url, { statementTimeoutMs: 0 })
  for (const batchSize of [100, 500, 1_000]) {
    const what = `drain, no-op handler, batch ${batchSize}`
    yield await againstRaw({ what, sql, filler: sql, batchSize, rounds, atLeast: 0.6 })
  }
  yield await walOfDrain(sql)
  const far = await startFar(server.url)
  const away = connect(far.through(url), { statementTimeoutMs: 0 })
  const what = 'the same at batch 500, the database 1 ms away each way'
  yield await againstRaw({ what, sql: away, filler: sql, batchSize: 500, rounds, atLeast: 1.2 })
  await Promise.all([sql.end(), away.end()])
  far.close()
}

interface Against {
  readonly what: string
  /** What drains. */
  readonly sql: Sql
  /** What puts the events into the logs. */
  readonly filler: Sql
  readonly batchSize: number
  readonly rounds: number
  readonly atLeast: number
}

async function againstRaw({ what, sql, filler, batchSize, rounds, atLeast }: Against): Promise<Figure> {
  const result = await compare(
    rounds,
    async () => {
      await fillLog(filler, 'loopless.event', count)
      return rateOf(() => drainLog(sql, idleHandlers, batchSize))
    },
    async () => {
      await fillLog(filler, 'raw_loop.event', count)
      return rateOf(() => drainRaw(sql, batchSize))
    },
  )
  return { what, ...result, unit: 'events/s', target: { atLeast } }
}

async function walOfDrain(sql: Sql): Promise<Figure> {
  await fillLog(sql, 'loopless.event', count)
  const bytes = await walBytesOf(sql, () => drainLog(sql, idleHandlers, 500))
  return {
    what: 'WAL of a drained event, batch 500',
    value: bytes / count,
    unit: 'B',
    peer: null,
    ratio: null,
    target: { atMost: 50 },
  }
}

/** The last 20,000 of 100,000 events drained while a session holds an old snapshot, against the first. */
export const heldSnapshot: Benchmark = async function* ({ server, rounds }) {
  const url = await server.createDatabase('bench_held')
  const sql = connect(url, { statementTimeoutMs: 0 })
  const holder = connect(url, { statementTimeoutMs: 0, idleInTransactionTimeoutMs: 0 })
  const firsts: number[] = []
  const lasts: number[] = []
  for (let round = 0; round < rounds; round++) {
    const session = await holder.reserve()
    await session`begin isolation level repeatable read`
    await session`select count(*) from loopless.event`
    const rates: number[] = []
    for (let part = 0; part < 5; part++) {
      await appendEvents(sql, 'loopless.event', 20_000)
      rates.push(await rateOf(() => drainLog(sql, idleHandlers, 500)))
    }
    await session`commit`
    session.release()
    firsts.push(rates[0] ?? Number.NaN)
    lasts.push(rates[4] ?? Number.NaN)
  }
  await Promise.all([sql.end(), holder.end()])
  yield flatness('drain with an old snapshot held: last 20,000 of 100,000 against first', lasts, firsts)
}

/** The first 10,000 events of a backlog of 1,000,000, against a backlog of 10,000. */
export const backlog: Benchmark = async function* ({ server, rounds }) {
  const sql = connect(await server.createDatabase('bench_backlog'), { statementTimeoutMs: 0 })
  const long: number[] = []
  const short: number[] = []
  await appendEvents(sql, 'loopless.event', 1_000_000)
  await drainLog(sql, idleHandlers, 500, 10_000) // warm
  for (let round = 0; round < rounds; round++)
    long.push(await rateOf(() => drainLog(sql, idleHandlers, 500, 10_000)))
  await sql`truncate loopless.event`
  for (let round = 0; round < rounds; round++) {
    await appendEvents(sql, 'loopless.event', 10_000)
    short.push(await rateOf(() => drainLog(sql, idleHandlers, 500, 10_000)))
  }
  await sql.end()
  yield flatness('drain with a backlog of 1,000,000 against one of 10,000', long, short)
}

function flatness(what: string, values: ReadonlyArray<number>, peers: ReadonlyArray<number>): Figure {
  const value = median(values)
  const peer = median(peers)
  return { what, value, unit: 'events/s', peer, ratio: value / peer, target: { atLeast: 0.9 } }
}
