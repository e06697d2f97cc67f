// A poller process of a benchmark: drains when told to, and says how much it did. Arguments: the database, and
// whether its handlers are to be `idle` or `inserting` a row.
import { connect } from '../src/index.ts'
import { drainLog, idleHandlers, insertingHandlers } from './log.ts'

const [, , url = '', kind] = process.argv
const sql = connect(url, { statementTimeoutMs: 0 })
const handlers = kind === 'idle' ? idleHandlers : insertingHandlers
await sql`select 1`
process.on('message', async () => {
  process.send?.(await drainLog(sql, handlers, 500))
})
process.on('disconnect', () => process.exit())
process.send?.('ready')
