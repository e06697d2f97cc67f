import type { Context } from 'aws-lambda'
import { HandlerSetError } from '../../src/index.ts'
import { databaseClock } from './clock.ts'
import { beginInvocation, sql } from './environment.ts'

/** Kept free for the answer. */
const answerMs = 250

/** The time that an invocation has. */
export interface Time {
  /** The database's. */
  readonly clock: () => Date
  readonly deadline: Date
}

/**
 * Runs a poller for the time that its invocation has, and logs what it did.
 * @returns its report; `refused` when another handler set is registered, as during a deployment
 */
export async function polling<Report extends object>(
  context: Pick<Context, 'getRemainingTimeInMillis'>,
  run: (time: Time) => Promise<Report>,
): Promise<Report | { refused: string }> {
  await beginInvocation()
  const clock = await databaseClock(sql)
  const deadline = new Date(clock().getTime() + context.getRemainingTimeInMillis() - answerMs)
  try {
    const report = await run({ clock, deadline })
    console.log(JSON.stringify({ level: 'info', message: 'Polled.', ...report }))
    return report
  } catch (error) {
    if (!(error instanceof HandlerSetError)) throw error
    console.warn(JSON.stringify({ level: 'warn', message: error.message }))
    return { refused: error.message }
  }
}
