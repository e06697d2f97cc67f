// A poller process of the transactional benchmark: drains when told to, and says how much it did.
import { connect } from '../src/index.ts'
import { drainLog, insertingHandlers } from './log.ts'

const sql = connect(process.argv[2] ?? '', { statementTimeoutMs: 0 })
await sql`select 1`
process.on('message', async () => {
  process.send?.(await drainLog(sql, insertingHandlers, 500))
})
process.on('disconnect', () => process.exit())
process.send?.('ready')
