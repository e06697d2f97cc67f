import { handlers } from 'loopless:handlers'
import type { Context } from 'aws-lambda'
import { type DrainReport, drain, HandlerSetError } from '../src/index.ts'
import { databaseClock } from './edge/clock.ts'
import { sql, stopSignal } from './edge/environment.ts'

/** Kept free for the answer. */
const answerMs = 250

/**
 * Scheduled: handles what is due until nothing is, or until this invocation's time is nearly up.
 * @returns what was done; `refused` when another handler set is registered, as during a deployment
 */
export async function handler(
  _event: unknown,
  context: Pick<Context, 'getRemainingTimeInMillis'>,
): Promise<DrainReport | { refused: string }> {
  const clock = await databaseClock(sql)
  const deadline = new Date(clock().getTime() + context.getRemainingTimeInMillis() - answerMs)
  try {
    const report = await drain({ sql, handlers, clock, deadline, signal: stopSignal })
    console.log(JSON.stringify({ level: 'info', message: 'Polled.', ...report }))
    return report
  } catch (error) {
    if (!(error instanceof HandlerSetError)) throw error
    console.warn(JSON.stringify({ level: 'warn', message: error.message }))
    return { refused: error.message }
  }
}
