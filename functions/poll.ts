import { handlers } from 'loopless:handlers'
import type { Context } from 'aws-lambda'
import { type DrainReport, drain } from '../src/index.ts'
import { sql, stopSignal } from './edge/environment.ts'
import { polling } from './edge/polling.ts'

/**
 * Scheduled: handles what is due until nothing is, or until this invocation's time is nearly up.
 * @returns what was done; `refused` when another handler set is registered, as during a deployment
 */
export function handler(
  _event: unknown,
  context: Pick<Context, 'getRemainingTimeInMillis'>,
): Promise<DrainReport | { refused: string }> {
  return polling(context, (time) => drain({ ...time, sql, handlers, signal: stopSignal }))
}
