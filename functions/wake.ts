import { handlers } from 'loopless:handlers'
import type { Context } from 'aws-lambda'
import { type AttendReport, attend, type DrainReport, help } from '../src/index.ts'
import { sql, stopSignal } from './edge/environment.ts'
import { invokeSelf } from './edge/invoke.ts'
import { polling } from './edge/polling.ts'
import { setting } from './edge/setting.ts'

/** What this function may be invoked for. */
const purposes = ['wake', 'continue', 'help'] as const

/**
 * Invoked by the database when something was published and no poller was awake, and by itself: to go on where one's time
 * ended, or to help with a long backlog. Handles what is due, looks again for a while, and goes idle.
 * @throws for any other payload than `{ "loopless": "wake" }`, `"continue"` or `"help"`
 */
export async function handler(
  event: unknown,
  context: Pick<Context, 'getRemainingTimeInMillis'>,
): Promise<AttendReport | DrainReport | { refused: string }> {
  const purpose = purposeOf(event)
  return polling<AttendReport | DrainReport>(context, (time) => {
    const maxPollers = Number(setting('MAX_POLLERS'))
    const options = { ...time, sql, handlers, signal: stopSignal, maxPollers, invoke: invokeSelf }
    if (purpose === 'help') return help(options)
    return attend({ ...options, lingerMs: Number(setting('LINGER_MS')) })
  })
}

function purposeOf(event: unknown): (typeof purposes)[number] {
  const given = (event as { loopless?: unknown } | null | undefined)?.loopless
  const purpose = purposes.find((one) => one === given)
  if (purpose !== undefined) return purpose
  throw new Error(
    `Expected the payload {"loopless":"wake"}, "continue" or "help", got ${JSON.stringify(event)?.slice(0, 200)}. ` +
      'This function is invoked by the database and by itself; to poll by hand, invoke the function poll.',
  )
}
