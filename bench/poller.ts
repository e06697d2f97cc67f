// A poller process of a benchmark: drains when told to, and says how much it did. Arguments: the database, and what
// it drains: the bus or the raw loop, with handlers that are `idle` or `inserting` a row.
import { connect, type Sql } from '../src/index.ts'
import { drainLog, idleHandlers, insertingHandlers } from './log.ts'
import type { PollerKind } from './pollers.ts'
import { drainRaw, drainRawInserts } from './raw-loop.ts'

const batchSize = 500
const drains: Record<PollerKind, (sql: Sql) => Promise<number>> = {
  idle: (sql) => drainLog(sql, idleHandlers, batchSize),
  inserting: (sql) => drainLog(sql, insertingHandlers, batchSize),
  'raw idle': (sql) => drainRaw(sql, batchSize),
  'raw inserting': (sql) => drainRawInserts(sql, batchSize),
}

const [, , url = '', kind] = process.argv
const drain = drains[kind as PollerKind]
const sql = connect(url, { statementTimeoutMs: 0 })
await sql`select 1`
process.on('message', async () => {
  process.send?.(await drain(sql))
})
process.on('disconnect', () => process.exit())
process.send?.('ready')
