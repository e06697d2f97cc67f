// A poller in a process of its own that polls until it is told to end, for the test of upgrades.

import { setTimeout as sleep } from 'node:timers/promises'
import { connect, poll } from '../../src/index.ts'
import { upgradeHandlers } from './upgrade-handlers.ts'

/** What it tells the test in the end. */
export interface OldPollerReport {
  readonly succeeded: number
  /** What polls failed with. */
  readonly errors: string[]
}

const [, , url = ''] = process.argv
const sql = connect(url, { applicationName: 'old-poller' })
let isAsked = false
process.on('message', () => {
  isAsked = true
})

let succeeded = 0
const errors: string[] = []
while (!isAsked) {
  try {
    const report = await poll(new Date(), { sql, handlers: upgradeHandlers, log: () => {} })
    succeeded += report.succeeded
  } catch (error) {
    errors.push(String(error))
  }
  await sleep(5)
}
await sql.end({ timeout: 5 })
const report: OldPollerReport = { succeeded, errors }
process.send?.(report, undefined, {}, () => process.disconnect())
