import type { PollReport } from './report.ts'
import { runStep } from './run-step.ts'
import { openStep, type PollOptions } from './step.ts'

/**
 * One stateless step: frees what dead pollers held, claims new events and due deliveries, runs their handlers and
 * settles. `now` is the only clock of its decisions: leases, due times, retries.
 * @returns what was done; `claimed: 0` when there was nothing to do
 * @throws HandlerSetError nothing was claimed; LeaseLostError it took longer than its lease; DatabaseError what was
 * not settled is handled by a later poll; SchemaMissingError; InvalidOptionError
 */
export async function poll(now: Date, options: PollOptions): Promise<PollReport> {
  const step = openStep(now, options)
  await runStep(step, null)
  return step.report
}
