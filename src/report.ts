import type { Work } from './claim.ts'
import type { Outcomes } from './outcome.ts'
import type { Plan } from './plan.ts'

/** What one poll, or one drain, did. */
export interface PollReport {
  /** Events and deliveries that were leased. */
  claimed: number
  /** Runs of handlers that succeeded and were settled. */
  succeeded: number
  /** Runs that failed and are due again. */
  retried: number
  /** Runs that ended in the dead letters. */
  dead: number
  /** Events that no handler takes; they stay in the log. */
  unhandled: number
  /** Events given back without having been started. */
  released: number
  /** Events freed from pollers that had died. */
  repaired: number
  /** When something is due next if nothing is published; null: nothing waits. */
  nextDueAt: Date | null
  /** Milliseconds spent by stage. */
  ms: { claim: number; handle: number; settle: number }
}

export function emptyReport(): PollReport {
  return {
    claimed: 0,
    succeeded: 0,
    retried: 0,
    dead: 0,
    unhandled: 0,
    released: 0,
    repaired: 0,
    nextDueAt: null,
    ms: { claim: 0, handle: 0, settle: 0 },
  }
}

/** Adds what became of a claim; called once it is settled. */
export function addWork(report: PollReport, work: Work, plan: Plan, outcomes: Outcomes): void {
  const notStarted = releasedFrom(work, outcomes)
  report.claimed += work.items.length
  report.repaired += work.repaired
  report.released += notStarted + outcomes.released.length
  report.unhandled += plan.unhandled.length
  for (const run of plan.runs) if (run.state === 'succeeded') report.succeeded++
  for (const failure of outcomes.failed) {
    if (failure.dueAt === undefined) report.dead++
    else {
      report.retried++
      report.nextDueAt = earlier(report.nextDueAt, failure.dueAt)
    }
  }
}

/** Adds the report of a later poll. */
export function addReport(sum: PollReport, one: PollReport): void {
  for (const key of ['claimed', 'succeeded', 'retried', 'dead', 'unhandled', 'released', 'repaired'] as const)
    sum[key] += one[key]
  for (const stage of ['claim', 'handle', 'settle'] as const) sum.ms[stage] += one.ms[stage]
  sum.nextDueAt = one.nextDueAt
}

export function earlier(one: Date | null, other: Date | null): Date | null {
  if (one === null || other === null) return one ?? other
  return one <= other ? one : other
}

function releasedFrom(work: Work, outcomes: Outcomes): number {
  const fromLog = work.items.filter((item) => item.delivery === null)
  if (outcomes.reopen) return fromLog.length
  const { split } = outcomes
  return split === undefined
    ? 0
    : fromLog.length - 1 - fromLog.findIndex((item) => item.event.id === split.id)
}
