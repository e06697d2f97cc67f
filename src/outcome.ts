import { retryDelayMs } from './backoff.ts'
import type { Work } from './claim.ts'
import { describeError, type ErrorDescription } from './describe-error.ts'
import { isDiscardRequest, isRetryRequest, PollerDiedError } from './errors.ts'
import type { Item } from './items.ts'
import type { Plan } from './plan.ts'
import type { Run } from './run.ts'

/** A failure as `loopless.settle` takes it. */
export interface FailedOutcome extends ErrorDescription {
  /** The row to change; absent when the failure makes one, or needs none. */
  readonly deliveryId?: string
  readonly xid: string
  readonly id: string
  readonly handler: string
  readonly attempt: number
  readonly charged: boolean
  readonly alone: boolean
  readonly dueAt?: Date
  readonly dead?: 'exhausted' | 'discarded' | 'invalid' | 'handler_gone'
  readonly beganAt: Date
  readonly endedAt: Date
}

/** What did not simply succeed; the argument of `loopless.settle`. */
export interface Outcomes {
  /** Events of the batch behind this position were not started. */
  readonly split?: { readonly xid: string; readonly id: string }
  /** No event of the batch was started. */
  readonly reopen?: true
  readonly failed: FailedOutcome[]
  readonly waiting: {
    xid: string
    id: string
    handler: string | null
    reason: 'released' | 'recovered'
    alone: boolean
  }[]
  readonly released: string[]
  readonly done: string[]
}

type Rest = Pick<Outcomes, 'split' | 'reopen'>

export interface OutcomeClock {
  readonly now: Date
  /** performance.now() when the poll began: `now` on the other clock. */
  readonly startMs: number
  /** From 0 up to 1, for the jitter. */
  readonly random: () => number
}

/** Turns the ends of the runs into what must be written. */
export function outcomesOf(work: Work, plan: Plan, clock: OutcomeClock): Outcomes {
  const outcomes: Outcomes = { failed: [], waiting: [], released: [], done: [] }
  for (const run of plan.runs) {
    if (run.state === 'failed') outcomes.failed.push(failureOf(run, clock))
  }
  for (const run of plan.died) outcomes.failed.push(failureOf(asDied(run), clock))
  for (const item of plan.gone) outcomes.failed.push(goneOf(item, clock.now))
  const rest = addUnstarted(work, plan, outcomes)
  addDeliveries(work, plan, outcomes)
  return { ...outcomes, ...rest }
}

/** True when the batch alone need be settled. */
export function isPlainSuccess(outcomes: Outcomes): boolean {
  const { split, reopen, failed, waiting, released, done } = outcomes
  return (
    split === undefined &&
    reopen === undefined &&
    failed.length + waiting.length + released.length + done.length === 0
  )
}

/** True when nothing is given back: every handler was called. */
export function isAllStarted({ split, reopen, released, waiting }: Outcomes): boolean {
  return split === undefined && reopen === undefined && released.length + waiting.length === 0
}

function failureOf(run: Run, clock: OutcomeClock): FailedOutcome {
  const { item, handler, attempt, error } = run
  const base = {
    ...describeError(error),
    xid: item.xid,
    id: item.event.id,
    handler: handler.name,
    alone: error instanceof PollerDiedError,
    beganAt: at(clock, run.beganMs),
    endedAt: at(clock, run.endedMs),
  }
  if (run.invalid) return { ...base, attempt: attempt - 1, charged: false, dead: 'invalid' }
  if (isDiscardRequest(error)) return { ...base, attempt, charged: true, dead: 'discarded' }
  if (attempt >= handler.maxAttempts) return { ...base, attempt, charged: true, dead: 'exhausted' }
  const retry = { ...base, attempt, charged: true, dueAt: retryTime(run, clock) }
  // only a row of this handler can be changed; the row of an event that waited for all handlers is replaced
  return item.delivery?.handler ? { ...retry, deliveryId: item.delivery.id } : retry
}

function retryTime({ error, handler, attempt }: Run, { now, random }: OutcomeClock): Date {
  const request = isRetryRequest(error) ? error : null
  if (request?.at) return request.at
  const delayMs =
    request?.afterSeconds != null ? request.afterSeconds * 1000 : retryDelayMs(handler, attempt, random())
  return new Date(now.getTime() + delayMs)
}

function asDied(run: Run): Run {
  const error = new PollerDiedError(
    `The poller died while it ran handler ${run.handler.name} with this event alone.`,
  )
  return { ...run, state: 'failed', error }
}

function goneOf({ event, xid, delivery }: Item, now: Date): FailedOutcome {
  const handler = delivery?.handler ?? ''
  return {
    xid,
    id: event.id,
    handler,
    attempt: delivery?.attempt ?? 0,
    charged: false,
    alone: false,
    dead: 'handler_gone',
    beganAt: now,
    endedAt: now,
    errorClass: 'HandlerGoneError',
    errorMessage: `No handler is named ${handler} any more. Redrive the dead letter once one is.`,
    errorStack: null,
  }
}

/** performance.now() on the poll's clock; a run that never began has no times of its own. */
function at({ now, startMs }: OutcomeClock, ms: number): Date {
  return new Date(now.getTime() + Math.max(0, Math.round(ms - startMs)))
}

/**
 * What was not started: the untouched end of the batch becomes a batch of its own; a single handler of an event that
 * others did start gets a delivery.
 */
function addUnstarted(work: Work, plan: Plan, outcomes: Outcomes): Rest {
  const unstarted = plan.runs.filter((run) => run.state === 'planned' && run.item.delivery === null)
  if (unstarted.length === 0) return {}
  const cut = plan.runs.findLast((run) => run.state !== 'planned' && run.item.delivery === null)?.index ?? -1
  for (const { index, item, handler } of unstarted) {
    if (index <= cut)
      outcomes.waiting.push({
        xid: item.xid,
        id: item.event.id,
        handler: handler.name,
        reason: 'released',
        alone: false,
      })
  }
  if (!unstarted.some((run) => run.index > cut)) return {}
  const last = work.items[cut]
  return last === undefined ? { reopen: true } : { split: { xid: last.xid, id: last.event.id } }
}

/** Each claimed delivery is deleted, given back, or changed by its failure. */
function addDeliveries(work: Work, plan: Plan, outcomes: Outcomes): void {
  const runsOf = new Map<Item, Run[]>()
  for (const run of plan.runs) {
    if (run.item.delivery === null) continue
    const runs = runsOf.get(run.item)
    if (runs) runs.push(run)
    else runsOf.set(run.item, [run])
  }
  const changed = new Set(outcomes.failed.map((failure) => failure.deliveryId))
  for (const item of work.items) {
    if (item.delivery === null || changed.has(item.delivery.id)) continue
    const planned = (runsOf.get(item) ?? []).filter((run) => run.state === 'planned')
    if (planned.length > 0 && planned.length === runsOf.get(item)?.length) {
      outcomes.released.push(item.delivery.id)
      continue
    }
    outcomes.done.push(item.delivery.id)
    for (const { handler } of planned) {
      outcomes.waiting.push({
        xid: item.xid,
        id: item.event.id,
        handler: handler.name,
        reason: 'released',
        alone: false,
      })
    }
  }
  for (const { item, handlers } of plan.expanded) {
    for (const handler of handlers) {
      outcomes.waiting.push({
        xid: item.xid,
        id: item.event.id,
        handler: handler.name,
        reason: 'recovered',
        alone: true,
      })
    }
  }
}
