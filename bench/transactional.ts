import type { ChildProcess } from 'node:child_process'
import { connect, type Sql } from '../src/index.ts'
import { type Benchmark, compare, rateOf } from './figure.ts'
import { drainLog, fillLog, insertingHandlers } from './log.ts'
import { drainTogether, startPoller } from './pollers.ts'
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
  const pollers = await Promise.all([startPoller(url, 'inserting'), startPoller(url, 'inserting')])
  const drainWith = async (some: ReadonlyArray<ChildProcess>): Promise<number> => {
    await prepare(sql, 'loopless.event')
    return rateOf(() => drainTogether(some))
  }
  await drainWith(pollers) // warm
  const twoAgainstOne = await compare(
    rounds,
    () => drainWith(pollers),
    () => drainWith(pollers.slice(0, 1)),
  )
  for (const poller of pollers) poller.disconnect()
  await sql.end()
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
