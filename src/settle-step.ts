import { claim, release, type Work } from './claim.ts'
import { isPipelined, type Sql } from './db/client.ts'
import { isAllStarted, type Outcomes, outcomesOf } from './outcome.ts'
import type { Scope } from './perform.ts'
import type { Plan } from './plan.ts'
import type { Run } from './run.ts'
import { type Settlement, settle, settleStatement } from './settle.ts'
import { claimLimits, type Step, timed } from './step.ts'
import { runGroup } from './transaction.ts'

/** What a step did with its work, up to its settlement. */
export interface Handled {
  readonly work: Work
  readonly plan: Plan
  readonly scope: Scope
  /** Index of the first event that must not be started any more. */
  readonly end: number
}

/** A step whose work was claimed while the step before it settled. */
export interface ClaimedStep {
  readonly step: Step
  readonly work: Work
}

/** Opens the step that comes next; null when none will. */
export type NextStep = () => Step | null

/** How a step ended. */
export interface StepEnd {
  /** The claim for the next step, under way; null when that step is to claim by itself. Never rejects. */
  readonly ahead: Promise<ClaimedStep | null> | null
}

interface SettledStep extends StepEnd {
  readonly outcomes: Outcomes
}

/**
 * Runs the transactional handlers and settles everything in their transaction; without any, settles in one statement,
 * and claims for the next step behind it.
 * @throws LeaseLostError, DatabaseError: nothing was settled, and nothing is claimed
 */
export async function settleStep(step: Step, handled: Handled, next: NextStep): Promise<SettledStep> {
  const { work, plan, scope, end } = handled
  const { options, durations, now, startMs } = step
  const clock = { now, startMs, random: options.random ?? Math.random }
  const units = [...plan.transactional.map((run) => [run]), ...plan.transactionalBatches]
    .map((unit: Run[]) => unit.filter((run) => run.index < end))
    .filter((unit) => unit.length > 0)
  if (units.length === 0) {
    const outcomes = outcomesOf(work, plan, clock)
    const mayClaim = isAllStarted(outcomes) && !work.aloneWaiting && isPipelined(options.sql)
    const settled = await settleAndClaim(step, { work, outcomes, now }, mayClaim ? next() : null)
    return { outcomes, ...settled }
  }
  let outcomes: Outcomes | null = null
  const spent = { handle: 0 }
  const group = {
    token: work.token,
    scope,
    durations,
    isPooled: !options.sql.options.prepare,
    spent,
    settle: (session: Sql) => {
      outcomes = outcomesOf(work, plan, clock)
      return settleStatement(session, { work, outcomes, now }, true)
    },
  }
  await timed(step, 'settle', () => runGroup(options.sql, units, group))
  step.report.ms.settle -= spent.handle
  step.report.ms.handle += spent.handle
  return { outcomes: outcomes ?? outcomesOf(work, plan, clock), ahead: null }
}

/**
 * Sends the claim right behind the settlement, without waiting for its answer: a round trip less, and each still
 * commits by itself. (In one transaction the claim's lock would be held while the settlement is written to the disk:
 * two pollers, 184k events/s instead of 198k; 2026-11-25.) A claim that fails is forgotten, and what is wrong comes up when
 * the next step claims; when the settlement fails, what was claimed is given back, uncharged.
 */
async function settleAndClaim(step: Step, settlement: Settlement, next: Step | null): Promise<StepEnd> {
  const settled = settle(step.options.sql, settlement)
  const ahead = next && claimBehind(settled, next)
  try {
    await timed(step, 'settle', () => settled)
  } catch (error) {
    await giveBack(ahead)
    throw error
  }
  return { ahead }
}

async function claimBehind(settled: Promise<void>, step: Step): Promise<ClaimedStep | null> {
  const claimed = claim(step.options.sql, claimLimits(step))
  claimed.catch(() => {}) // looked at below
  await settled.catch(() => {}) // the time until then is the settlement's
  const work = await timed(step, 'claim', () => claimed).catch(() => null)
  return work && { step, work }
}

/** Gives back, uncharged, what was claimed for a step that will not come. */
export async function giveBack(ahead: StepEnd['ahead']): Promise<void> {
  const claimed = await ahead
  if (claimed) await release(claimed.step.options.sql, claimed.work.token, claimed.step.now)
}
