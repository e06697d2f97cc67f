import type { Work } from './claim.ts'
import type { Item } from './items.ts'
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
export function addWork(report: PollReport, work: Work, plan: Plan, outcomes: Outcomes, now: Date): void {
  const { failed, released, waiting } = outcomes
  const rest = restOf(work, outcomes)
  report.claimed += work.items.length
  report.repaired += work.repaired
  report.released += rest.size + released.length
  report.unhandled += plan.unhandled.filter((item) => !rest.has(item)).length
  for (const run of plan.runs) if (run.state === 'succeeded') report.succeeded++
  for (const failure of failed) {
    if (failure.dueAt === undefined) report.dead++
    else {
      report.retried++
      report.nextDueAt = earlier(report.nextDueAt, failure.dueAt)
    }
  }
  if (rest.size + released.length + waiting.length > 0) report.nextDueAt = earlier(report.nextDueAt, now)
}

/** Adds the report of a later poll. */
export function addReport(sum: PollReport, one: PollReport): void {
  for (const key of ['claimed', 'succeeded', 'retried', 'dead', 'unhandled', 'released', 'repaired'] as const)
    sum[key] += one[key]
  for (const stage of ['claim', 'handle', 'settle'] as const) sum.ms[stage] += one.ms[stage]
  sum.nextDueAt = one.nextDueAt
}

function earlier(one: Date | null, other: Date | null): Date | null {
  if (one === null || other === null) return one ?? other
  return one <= other ? one : other
}

/** The events at the end of the batch that were given back. */
function restOf(work: Work, { split, reopen }: Outcomes): ReadonlySet<Item> {
  const fromLog = work.items.filter((item) => item.delivery === null)
  if (reopen) return new Set(fromLog)
  if (split === undefined) return new Set()
  return new Set(fromLog.slice(fromLog.findIndex((item) => item.event.id === split.id) + 1))
}
