import { connect, type Sql } from '../src/index.ts'
import { type Benchmark, compare, rateOf } from './figure.ts'
import { drainLog, fillLog, insertingHandlers } from './log.ts'
import { openPollers } from './pollers.ts'
import { drainRawInserts } from './raw-loop.ts'

const count = 20_000

/** A transactional handler that inserts a row, against the same inserts and settle by hand; then two pollers against one. */
export const transactional: Benchmark = async function* ({ server, rounds }) {
  const url = await server.createDatabase('bench_transactional')
  const sql = connect(url, { statementTimeoutMs: 0 })
  const byHand = await compare(
    rounds,
    async () => {
      await prepare(sql, 'loopless.event')
      return rateOf(() => drainLog(sql, insertingHandlers, 500))
    },
    async () => {
      await prepare(sql, 'raw_loop.event')
      return rateOf(() => drainRawInserts(sql, 500))
    },
  )
  yield {
    what: 'drain, transactional insert, batch 500',
    ...byHand,
    unit: 'events/s',
    target: { atLeast: 0.8 },
  }
  await sql.end()
  const pollers = await openPollers([1, 2], { url, pollersUrl: url, kind: 'inserting', count, warmUps: 1 })
  const twoAgainstOne = await compare(
    rounds,
    () => pollers.drain(2),
    () => pollers.drain(1),
  )
  await pollers.close()
  yield {
    what: 'the same, two pollers against one',
    ...twoAgainstOne,
    unit: 'events/s',
    target: { atLeast: 2 },
  }
}

async function prepare(sql: Sql, table: 'loopless.event' | 'raw_loop.event'): Promise<void> {
  await sql`truncate public.effect`
  await fillLog(sql, table, count)
}
