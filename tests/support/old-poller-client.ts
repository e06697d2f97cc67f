// A poller of an earlier version, for the test of upgrades, in a process of its own: the code of this tree, but for how it
// claims. Polls until it is told to end, or `once`.

import { registerHooks } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'
import type { PollReport } from '../../src/index.ts'

const oldLease = new URL('old-lease.ts', import.meta.url).href
registerHooks({
  resolve: (specifier, context, next) =>
    specifier === './lease.ts' ? { url: oldLease, shortCircuit: true } : next(specifier, context),
})
const { connect, poll } = await import('../../src/index.ts')
const { upgradeHandlers } = await import('./upgrade-handlers.ts')

/** What it tells the test in the end. */
export interface OldPollerReport {
  /** What its last poll did; null when it failed. */
  readonly last: PollReport | null
  /** What polls failed with. */
  readonly errors: string[]
}

const [, , url = '', times] = process.argv
const sql = connect(url, { applicationName: 'old-poller' })
let isAsked = times === 'once'
process.on('message', () => {
  isAsked = true
})

let last: PollReport | null = null
const errors: string[] = []
do {
  try {
    last = await poll(new Date(), { sql, handlers: upgradeHandlers, log: () => {} })
  } catch (error) {
    last = null
    errors.push(String(error))
  }
  if (!isAsked) await sleep(5)
} while (!isAsked)
await sql.end({ timeout: 5 })
const report: OldPollerReport = { last, errors }
process.send?.(report, undefined, {}, () => process.disconnect())
