// A poller in a process of its own, for tests that end it. Its handlers do what the payload says, and tell the test.

import { connect, defineEvent, defineHandler, defineHandlers, drain, poll } from '../../src/index.ts'

/** What the test asks for; the only argument, as JSON. */
export interface PollClientOptions {
  readonly url: string
  /** When each poll happens; it ends when one has claimed nothing. */
  readonly now: string
  /** Drains, with so many events a claim; else it polls again and again. */
  readonly drainsBy?: number
  readonly idleInTransactionTimeoutMs?: number
}

/** What it tells the test. */
export type PollClientMessage =
  | { readonly called: string; readonly handler: string }
  | { readonly failed: string }
  | { readonly ended: true }

/** The payload of an event: whether its handler never ends, or ends or stops the process. */
export interface CrashPayload {
  readonly conduct: 'succeed' | 'block' | 'exit' | 'kill' | 'freeze'
}

const [, , json = '{}'] = process.argv
const { url, now, drainsBy, idleInTransactionTimeoutMs } = JSON.parse(json) as PollClientOptions

function tell(message: PollClientMessage): Promise<void> {
  return new Promise((resolve) => process.send?.(message, undefined, {}, () => resolve()))
}

async function behave(handler: string, event: { id: string; payload: unknown }): Promise<void> {
  await tell({ called: event.id, handler })
  const { conduct } = event.payload as CrashPayload
  if (conduct === 'block') await new Promise(() => {})
  if (conduct === 'exit') process.exit(1)
  if (conduct === 'kill') process.kill(process.pid, 'SIGKILL')
  if (conduct === 'freeze') process.kill(process.pid, 'SIGSTOP')
}

const options = { maxAttempts: 3, baseDelaySeconds: 60, jitter: 0 }
const handlers = defineHandlers({
  plain: defineHandler(defineEvent('crash.plain'), options, (event) => behave('plain', event)),
  transactional: defineHandler(
    defineEvent('crash.transactional'),
    { ...options, transactional: true },
    async (event, { tx }) => {
      await tx`insert into effect (event_id) values (${event.id})`
      await behave('transactional', event)
    },
  ),
})

const sql = connect(url, {
  applicationName: 'poll-client',
  ...(idleInTransactionTimeoutMs !== undefined && { idleInTransactionTimeoutMs }),
})
try {
  const clock = (): Date => new Date(now)
  if (drainsBy) {
    const deadline = new Date(clock().getTime() + 600_000)
    await drain({ sql, handlers, clock, deadline, limits: { events: drainsBy } })
  } else while ((await poll(clock(), { sql, handlers })).claimed > 0);
  await tell({ ended: true })
} catch (error) {
  await tell({ failed: (error as Error).name })
}
await sql.end({ timeout: 1 })
process.disconnect()
