import { channel } from 'node:diagnostics_channel'
import type { PollReport } from './report.ts'
import type { Run } from './run.ts'

/** Message of the channel `loopless:handled`: a handler's outcome for one event, once it is settled. */
export interface HandledMessage {
  readonly eventId: string
  readonly eventName: string
  readonly handler: string
  readonly attempt: number
  readonly outcome: 'succeeded' | 'failed'
  /** What the handler threw; undefined when it succeeded. */
  readonly error: unknown
  /** performance.now() when the handler was called; null: it was not, because the payload did not fit. */
  readonly beganMs: number | null
  readonly durationMs: number
}

/** Message of the channel `loopless:polled`: one poll that claimed something, and what it settled. */
export interface PolledMessage {
  readonly now: Date
  readonly report: PollReport
}

const handled = channel('loopless:handled')
const polled = channel('loopless:polled')

/** Announces settled runs to whoever listens on `node:diagnostics_channel`; costs nothing when nobody does. */
export function announceHandled(runs: ReadonlyArray<Run>): void {
  if (!handled.hasSubscribers) return
  for (const run of runs) if (run.state !== 'planned') handled.publish(messageOf(run))
}

/** Announces a poll that claimed something. */
export function announcePolled(now: Date, report: PollReport): void {
  if (polled.hasSubscribers) polled.publish({ now, report } satisfies PolledMessage)
}

function messageOf(run: Run): HandledMessage {
  return {
    eventId: run.item.event.id,
    eventName: run.item.event.name,
    handler: run.handler.name,
    attempt: run.attempt,
    outcome: run.state === 'succeeded' ? 'succeeded' : 'failed',
    error: run.error,
    beganMs: run.invalid || run.beganMs === 0 ? null : run.beganMs,
    durationMs: run.endedMs - run.beganMs,
  }
}
