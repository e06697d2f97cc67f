import type { Work } from './claim.ts'
import type { HandlerSet, NamedHandler } from './handler-set.ts'
import type { Item } from './items.ts'
import { planRun, type Run } from './run.ts'

/** What a poll will do with what it claimed; runs are in the order of the events. */
export interface Plan {
  readonly plain: Run[]
  /** One entry a batch handler. */
  readonly batches: Run[][]
  readonly transactional: Run[]
  readonly transactionalBatches: Run[][]
  /** All of the above. */
  readonly runs: Run[]
  /** Nobody handles them. */
  readonly unhandled: Item[]
  /** Deliveries of a handler that is not in the set. */
  readonly gone: Item[]
  /** Deliveries whose poller died while it ran them alone, with the handler that it ran. */
  readonly died: Run[]
  /** Deliveries that must run alone but have several handlers: each gets a row of its own first. */
  readonly expanded: { readonly item: Item; readonly handlers: ReadonlyArray<NamedHandler> }[]
}

/** Decides which handlers run for which events. */
export function planWork(work: Work, handlers: HandlerSet): Plan {
  const plan: Plan = {
    plain: [],
    batches: [],
    transactional: [],
    transactionalBatches: [],
    runs: [],
    unhandled: [],
    gone: [],
    died: [],
    expanded: [],
  }
  const batchOf = new Map<NamedHandler, Run[]>()
  for (const [index, item] of work.items.entries()) {
    const targets = targetsOf(item, handlers, plan)
    for (const handler of targets) {
      const run = planRun(item, index, handler)
      if (item.delivery?.died) {
        plan.died.push(run)
        continue
      }
      plan.runs.push(run)
      if (handler.batch) addToBatch(run, batchOf, plan)
      else if (handler.transactional) plan.transactional.push(run)
      else plan.plain.push(run)
    }
  }
  return plan
}

const nobody: ReadonlyArray<NamedHandler> = []

function targetsOf(item: Item, handlers: HandlerSet, plan: Plan): ReadonlyArray<NamedHandler> {
  const { delivery } = item
  if (delivery !== null && delivery.handler !== null) {
    const handler = handlers.find(delivery.handler)
    if (handler) return [handler]
    plan.gone.push(item)
    return nobody
  }
  const route = handlers.route(item.event.name)
  if (route.length === 0) plan.unhandled.push(item)
  if (delivery?.alone && route.length > 1) {
    plan.expanded.push({ item, handlers: route })
    return nobody
  }
  return route
}

function addToBatch(run: Run, batchOf: Map<NamedHandler, Run[]>, plan: Plan): void {
  const known = batchOf.get(run.handler)
  if (known) {
    known.push(run)
    return
  }
  const runs = [run]
  batchOf.set(run.handler, runs)
  const list = run.handler.transactional ? plan.transactionalBatches : plan.batches
  list.push(runs)
}
