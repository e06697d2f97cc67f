import { InvalidOptionError, LeaseLostError } from './errors.ts'
import { resolveLimits } from './limits.ts'
import { addReport, emptyReport, type PollReport } from './report.ts'
import { runStep } from './run-step.ts'
import { giveBack, type StepEnd } from './settle-step.ts'
import { openStep, type PollOptions, type Step } from './step.ts'

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
/** A claim grows while claiming and handling take less than this, and shrinks when they take four times as long. */
const quickPollMs = 250
const firstClaim = 50

/**
 * Polls until nothing is due or the deadline nears, and never runs past it. Starts only what fits; what it did not
 * start is free for others at once. Claims begin small and grow while polls are quick, so that a drain of slow
 * handlers does not hoard what others could run. While a poll is settled the next one claims; when that fails, the next
 * poll claims again, and says what is wrong.
 * @throws as `poll`, but for LeaseLostError, which is counted; polls before are settled and announced
 */
export async function drain(options: DrainOptions): Promise<DrainReport> {
  const limits = resolveLimits(options.limits)
  const report = emptyDrainReport()
  const nextStep = stepsUntilDeadline(options)
  let last: Step | null = null
  let ahead: StepEnd['ahead'] = null
  for (;;) {
    const claimed = await ahead
    const step: Step | null = claimed?.step ?? nextStep(last)
    if (step === null) return report
    last = step
    try {
      const end = await runStep(step, claimed?.work ?? null, () => nextStep(step))
      ahead = end.ahead
    } catch (error) {
      if (!(error instanceof LeaseLostError)) throw error
      report.leasesLost++
      ahead = null
      continue
    }
    report.polls++
    addReport(report, step.report)
    try {
      await options.onPoll?.()
    } catch (error) {
      await giveBack(ahead)
      throw error
    }
    const { claimed: count, released, repaired, nextDueAt } = step.report
    report.drained = count === 0 && !isDue(nextDueAt, step.now)
    const isOutOfTime = released > 0 && (released === count || step.limits.seconds < limits.seconds)
    const isElsewhere = count + repaired === 0 // what is due is in the hands of another poller
    if (report.drained || isOutOfTime || isElsewhere) return report
  }
}

/** Makes what opens the step behind another; null: no time is left, or the signal ends the drain. */
function stepsUntilDeadline(options: DrainOptions): (last: Step | null) => Step | null {
  const { clock, deadline, onPoll: _, ...stepOptions } = options
  if (!(deadline instanceof Date) || Number.isNaN(deadline.getTime())) {
    throw new InvalidOptionError(`Expected deadline to be a valid Date, got ${String(deadline)}.`)
  }
  const limits = resolveLimits(options.limits)
  const durations = new Map<string, number>()
  const reserveMs = Math.min(settleReserveMs, (deadline.getTime() - clock().getTime()) / 5)
  return (last) => {
    if (options.signal?.aborted) return null
    const now = clock()
    const seconds = Math.min(limits.seconds, (deadline.getTime() - now.getTime() - reserveMs) / 1000)
    if (seconds < 0.01) return null
    const events = last ? nextClaim(last, limits.events) : Math.min(firstClaim, limits.events)
    return openStep(now, { ...stepOptions, durations, limits: { ...limits, events, seconds } })
  }
}

/** Asked at the end of a step's handlers, or of the step. */
function nextClaim({ startMs, limits: { events } }: Step, most: number): number {
  const tookMs = performance.now() - startMs
  if (tookMs < quickPollMs) return Math.min(events * 2, most)
  return tookMs > 4 * quickPollMs ? Math.max(1, Math.floor(events / 2)) : events
}

export function emptyDrainReport(): DrainReport {
  return { ...emptyReport(), polls: 0, leasesLost: 0, drained: false }
}

function isDue(at: Date | null, now: Date): boolean {
  return at !== null && at <= now
}
