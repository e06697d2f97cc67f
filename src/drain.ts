import { InvalidOptionError, LeaseLostError } from './errors.ts'
import { resolveLimits } from './limits.ts'
import { type PollOptions, poll } from './poll.ts'
import { addReport, emptyReport, type PollReport } from './report.ts'

export interface DrainOptions extends Omit<PollOptions, 'durations'> {
  /** The time that decisions go by; read once a poll. */
  readonly clock: () => Date
  /** On the same clock: the drain has ended by then. */
  readonly deadline: Date
  /** Called after each poll, and waited for. */
  readonly onPoll?: () => Promise<void>
}

export interface DrainReport extends PollReport {
  /** Polls that were made. */
  polls: number
  /** Polls whose lease was lost to another poll; nothing of them was settled. */
  leasesLost: number
  /** True when nothing was due any more; false when the deadline or the signal ended it, or another poller had it. */
  drained: boolean
}

/** Kept free before the deadline for settling, at most a fifth of the whole time. */
const settleReserveMs = 1_000
/** A claim grows while a poll takes less than this, and shrinks when it takes four times as long. */
const quickPollMs = 250
const firstClaim = 50

/**
 * Polls until nothing is due or the deadline nears, and never runs past it. Starts only what fits; what it did not
 * start is free for others at once. Claims begin small and grow while polls are quick, so that a drain of slow
 * handlers does not hoard what others could run.
 * @throws as `poll`, but for LeaseLostError, which is counted
 */
export async function drain(options: DrainOptions): Promise<DrainReport> {
  const { clock, deadline, signal, onPoll, ...pollOptions } = options
  if (!(deadline instanceof Date) || Number.isNaN(deadline.getTime())) {
    throw new InvalidOptionError(`Expected deadline to be a valid Date, got ${String(deadline)}.`)
  }
  const limits = resolveLimits(options.limits)
  const report = emptyDrainReport()
  const durations = new Map<string, number>()
  const reserveMs = Math.min(settleReserveMs, (deadline.getTime() - clock().getTime()) / 5)
  let events = Math.min(firstClaim, limits.events)
  while (!signal?.aborted) {
    const now = clock()
    const seconds = Math.min(limits.seconds, (deadline.getTime() - now.getTime() - reserveMs) / 1000)
    if (seconds < 0.01) return report
    const beganMs = performance.now()
    let one: PollReport
    try {
      one = await poll(now, {
        ...pollOptions,
        durations,
        limits: { ...limits, events, seconds },
        ...(signal && { signal }),
      })
    } catch (error) {
      if (!(error instanceof LeaseLostError)) throw error
      report.leasesLost++
      continue
    }
    report.polls++
    addReport(report, one)
    events = nextClaim(events, limits.events, performance.now() - beganMs)
    await onPoll?.()
    report.drained = one.claimed === 0 && !isDue(one.nextDueAt, now)
    const isOutOfTime = one.released > 0 && (one.released === one.claimed || seconds < limits.seconds)
    const isElsewhere = one.claimed + one.repaired === 0 // what is due is in the hands of another poller
    if (report.drained || isOutOfTime || isElsewhere) return report
  }
  return report
}

export function emptyDrainReport(): DrainReport {
  return { ...emptyReport(), polls: 0, leasesLost: 0, drained: false }
}

function nextClaim(events: number, most: number, tookMs: number): number {
  if (tookMs < quickPollMs) return Math.min(events * 2, most)
  return tookMs > 4 * quickPollMs ? Math.max(1, Math.floor(events / 2)) : events
}

function isDue(at: Date | null, now: Date): boolean {
  return at !== null && at <= now
}
