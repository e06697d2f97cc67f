import { announceHandled, announcePolled } from './channels.ts'
import { type ClaimLimits, claim, claimAlone, nextDue, release, type Work } from './claim.ts'
import type { Sql } from './db/client.ts'
import { type Durations, learn } from './durations.ts'
import { InvalidOptionError } from './errors.ts'
import { handlePlain } from './handle.ts'
import type { HandlerSet } from './handler-set.ts'
import { type Limits, resolveLimits } from './limits.ts'
import { type LogSink, logJson } from './log.ts'
import { type Outcomes, outcomesOf } from './outcome.ts'
import type { Scope } from './perform.ts'
import { type Plan, planWork } from './plan.ts'
import { addWork, emptyReport, type PollReport } from './report.ts'
import type { Run } from './run.ts'
import { settle, settleStatement } from './settle.ts'
import { runGroup } from './transaction.ts'
import { openWatch } from './watch.ts'

export interface PollOptions {
  /** A client made by `connect`; one connection is used. */
  readonly sql: Sql
  readonly handlers: HandlerSet
  readonly limits?: Limits
  /** Aborted: nothing further is started, what was not started is given back. */
  readonly signal?: AbortSignal
  /** How long handlers took lately; kept by a drain. */
  readonly durations?: Durations
  /** Where handlers' `context.log` goes. Default: JSON lines on stdout. */
  readonly log?: LogSink
  /** For the jitter of delays, from 0 up to 1. Default Math.random. */
  readonly random?: () => number
}

/** A poll under way: what its steps share. */
interface Step {
  readonly now: Date
  readonly startMs: number
  readonly options: PollOptions
  readonly limits: Required<Limits>
  readonly durations: Durations
  readonly report: PollReport
}

/**
 * One stateless step: frees what dead pollers held, claims new events and due deliveries, runs their handlers and
 * settles. `now` is the only clock of its decisions: leases, due times, retries.
 * @returns what was done; `claimed: 0` when there was nothing to do
 * @throws HandlerSetError nothing was claimed; LeaseLostError it took longer than its lease; DatabaseError what was
 * not settled is handled by a later poll; InvalidOptionError
 */
export async function poll(now: Date, options: PollOptions): Promise<PollReport> {
  if (!(now instanceof Date) || Number.isNaN(now.getTime())) {
    throw new InvalidOptionError(`Expected now to be a valid Date, got ${String(now)}.`)
  }
  const step: Step = {
    now,
    startMs: performance.now(),
    options,
    limits: resolveLimits(options.limits),
    durations: options.durations ?? new Map(),
    report: emptyReport(),
  }
  const work = await claimSome(step)
  step.report.nextDueAt = work.nextDueAt
  try {
    await finish(step, work)
    if (work.aloneWaiting) {
      await pollAlone(step)
      step.report.nextDueAt = await nextDue(options.sql)
    }
  } finally {
    if (step.report.claimed > 0) announcePolled(now, step.report)
  }
  return step.report
}

/** A part of the log that holds nothing but delayed events is not worth a poll of its own. */
async function claimSome(step: Step): Promise<Work> {
  const endMs = step.startMs + step.limits.seconds * 1000
  for (;;) {
    const work = await timed(step, 'claim', () => claim(step.options.sql, claimLimits(step)))
    if (!work.advanced || work.items.length > 0 || performance.now() >= endMs) return work
    step.report.repaired += work.repaired
  }
}

/** Deliveries that run alone: one claim and one settlement each, so that a death here has one suspect. */
async function pollAlone(step: Step): Promise<void> {
  const endMs = step.startMs + step.limits.seconds * 1000
  for (let count = 0; count < step.limits.alone; count++) {
    if (step.options.signal?.aborted || performance.now() >= endMs) return
    const work = await timed(step, 'claim', () => claimAlone(step.options.sql, claimLimits(step)))
    if (work === null) return
    await finish(step, work)
  }
}

async function finish(step: Step, work: Work): Promise<void> {
  if (work.items.length === 0) {
    step.report.repaired += work.repaired
    return
  }
  const { options, limits, durations, now, startMs } = step
  const plan = planWork(work, options.handlers)
  const watch = openWatch(startMs + limits.seconds * 1000, options.signal)
  const scope: Scope = { now, watch, log: options.log ?? logJson }
  try {
    const end = await timed(step, 'handle', () => handlePlain(plan, scope, durations, limits.concurrency))
    const outcomes = await timed(step, 'settle', () => settleWork(step, work, plan, scope, end))
    learn(durations, plan.runs)
    addWork(step.report, work, plan, outcomes, now)
    announceHandled(plan.runs)
  } catch (error) {
    await release(options.sql, work.token, now)
    throw error
  } finally {
    watch.close()
  }
}

async function settleWork(step: Step, work: Work, plan: Plan, scope: Scope, end: number): Promise<Outcomes> {
  const { options, durations, now, startMs } = step
  const clock = { now, startMs, random: options.random ?? Math.random }
  const units = [...plan.transactional.map((run) => [run]), ...plan.transactionalBatches]
    .map((unit: Run[]) => unit.filter((run) => run.index < end))
    .filter((unit) => unit.length > 0)
  if (units.length === 0) {
    const outcomes = outcomesOf(work, plan, clock)
    await settle(options.sql, { work, outcomes, now })
    return outcomes
  }
  let outcomes: Outcomes | null = null
  await runGroup(options.sql, units, {
    token: work.token,
    scope,
    durations,
    settle: (session) => {
      outcomes = outcomesOf(work, plan, clock)
      return settleStatement(session, { work, outcomes, now }, true)
    },
  })
  return outcomes ?? outcomesOf(work, plan, clock)
}

function claimLimits({ now, limits, options }: Step): ClaimLimits {
  return {
    now,
    until: new Date(now.getTime() + (limits.seconds + limits.leaseMarginSeconds) * 1000),
    events: limits.events,
    bytes: limits.bytes,
    deliveries: Math.max(1, Math.ceil(limits.events * limits.deliveryShare)),
    handlerSet: options.handlers.hash,
  }
}

async function timed<Result>(
  step: Step,
  stage: keyof PollReport['ms'],
  run: () => Promise<Result>,
): Promise<Result> {
  const beganMs = performance.now()
  try {
    return await run()
  } finally {
    step.report.ms[stage] += performance.now() - beganMs
  }
}
