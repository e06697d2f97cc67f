// Loaded into serverless-offline and its workers by --import: writes a line of JSON for the handlers that have run, so
// that `npm start` can tell how soon they were called.

import { subscribe } from 'node:diagnostics_channel'
import type { HandledMessage } from '../../src/index.ts'
import type { HandledRun } from './handled.ts'

let runs: HandledRun[] = []

subscribe('loopless:handled', (message) => {
  const { eventId, eventName, handler, outcome, beganMs } = message as HandledMessage
  const beganAtMs = beganMs === null ? null : Date.now() - (performance.now() - beganMs)
  // Those of a poll are announced one after the other.
  if (runs.length === 0) setImmediate(write)
  runs.push({ eventId, eventName, handler, outcome, beganAtMs })
})

function write(): void {
  console.log(JSON.stringify({ level: 'info', message: 'Handled.', runs }))
  runs = []
}
