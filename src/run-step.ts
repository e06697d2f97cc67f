import { announceHandled, announcePolled } from './channels.ts'
import { claim, claimAlone, nextDue, release, type Work } from './claim.ts'
import { learn } from './durations.ts'
import { handlePlain } from './handle.ts'
import { logJson } from './log.ts'
import type { Scope } from './perform.ts'
import { planWork } from './plan.ts'
import { addWork } from './report.ts'
import { type NextStep, type StepEnd, settleStep } from './settle-step.ts'
import { claimLimits, type Step, timed } from './step.ts'
import { openWatch } from './watch.ts'

const alone: StepEnd = { ahead: null }
const noNext: NextStep = () => null

/**
 * Claims, handles and settles; the step's report says what was done.
 * @param claimed what was claimed for this step already; null: nothing yet
 * @param next asked when everything that was claimed has been started and is to be settled: the step to claim for meanwhile
 * @throws as `poll`; nothing is claimed for the next step then
 */
export async function runStep(step: Step, claimed: Work | null, next: NextStep = noNext): Promise<StepEnd> {
  const work = await claimSome(step, claimed)
  step.report.nextDueAt = work.nextDueAt
  try {
    const end = await finish(step, work, next)
    if (work.aloneWaiting) {
      await runAlone(step)
      step.report.nextDueAt = await nextDue(step.options.sql)
    }
    return end
  } finally {
    if (step.report.claimed > 0) announcePolled(step.now, step.report)
  }
}

/** A part of the log that holds nothing but delayed events is not worth a poll of its own. */
async function claimSome(step: Step, claimed: Work | null): Promise<Work> {
  const claimMore = (): Promise<Work> =>
    timed(step, 'claim', () => claim(step.options.sql, claimLimits(step)))
  let work = claimed ?? (await claimMore())
  while (work.advanced && work.items.length === 0 && performance.now() < step.endMs) {
    step.report.repaired += work.repaired
    work = await claimMore()
  }
  return work
}

/** Deliveries that run alone: one claim and one settlement each, so that a death here has one suspect. */
async function runAlone(step: Step): Promise<void> {
  for (let count = 0; count < step.limits.alone; count++) {
    if (step.options.signal?.aborted || performance.now() >= step.endMs) return
    const work = await timed(step, 'claim', () => claimAlone(step.options.sql, claimLimits(step)))
    if (work === null) return
    await finish(step, work, noNext)
  }
}

async function finish(step: Step, work: Work, next: NextStep): Promise<StepEnd> {
  if (work.items.length === 0) {
    step.report.repaired += work.repaired
    return alone
  }
  const { options, limits, durations, now, endMs } = step
  const plan = planWork(work, options.handlers)
  const watch = openWatch(endMs, options.signal)
  const scope: Scope = { now, watch, log: options.log ?? logJson }
  try {
    const end = await timed(step, 'handle', () => handlePlain(plan, scope, durations, limits.concurrency))
    const { outcomes, ahead } = await settleStep(step, { work, plan, scope, end }, next)
    learn(durations, plan.runs)
    addWork(step.report, work, plan, outcomes, now)
    announceHandled(plan.runs)
    return { ahead }
  } catch (error) {
    await release(options.sql, work.token, now)
    throw error
  } finally {
    watch.close()
  }
}
