import type { Context } from 'aws-lambda'
import { type PruneReport, prune } from '../src/index.ts'
import { databaseClock } from './edge/clock.ts'
import { beginInvocation, sql, stopSignal } from './edge/environment.ts'
import { setting } from './edge/setting.ts'

/** Kept free for the chunk under way and the answer. */
const reserveMs = 5_000

/**
 * Scheduled: retention. Removes what is settled and old, in short transactions; what its time does not suffice for
 * is left for the next day.
 * @returns what was removed
 */
export async function handler(
  _event: unknown,
  context: Pick<Context, 'getRemainingTimeInMillis'>,
): Promise<PruneReport> {
  await beginInvocation()
  const clock = await databaseClock(sql)
  const timeMs = Math.max(0, context.getRemainingTimeInMillis() - reserveMs)
  const report = await prune(sql, clock(), {
    eventDays: Number(setting('KEEP_EVENT_DAYS')),
    attemptDays: Number(setting('KEEP_ATTEMPT_DAYS')),
    deadLetterDays: Number(setting('KEEP_DEAD_LETTER_DAYS')),
    signal: AbortSignal.any([stopSignal, AbortSignal.timeout(timeMs)]),
  })
  console.log(JSON.stringify({ level: 'info', message: 'Pruned.', ...report }))
  return report
}
