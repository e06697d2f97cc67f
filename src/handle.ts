import { type Durations, expectedMs } from './durations.ts'
import type { NamedHandler } from './handler-set.ts'
import { perform, performBatch, type Scope } from './perform.ts'
import type { Plan } from './plan.ts'
import type { Call, Run } from './run.ts'

/**
 * Runs the handlers that need no transaction: those of single events in order, several at once, then batch handlers.
 * What does not fit before the end stays planned, and so does everything behind it: the rest of a batch is one piece.
 * @returns the index of the first event that must not be started any more; Infinity when all may be
 */
export async function handlePlain(
  plan: Plan,
  scope: Scope,
  durations: Durations,
  concurrency: number,
): Promise<number> {
  const end = await handleSingles(plan.plain, scope, durations, concurrency)
  for (const batch of plan.batches) {
    const runs = batch.filter((run) => run.index < end)
    const [first] = runs
    if (first === undefined) continue
    if (!scope.watch.mayStart(expectedMs(durations, first.handler))) break
    await performBatch(runs, scope)
  }
  return end
}

async function handleSingles(
  runs: ReadonlyArray<Run>,
  scope: Scope,
  durations: Durations,
  concurrency: number,
): Promise<number> {
  const running = new Map<NamedHandler, number>() // of those that have a limit of their own
  let inFlight = 0
  let wake: (() => void) | null = null
  const count = (handler: NamedHandler, by: number): void => {
    inFlight += by
    if (handler.concurrency !== Infinity) running.set(handler, (running.get(handler) ?? 0) + by)
  }
  const ended = (call: Call): void => {
    count(call.handler, -1)
    wake?.()
  }
  const isFull = (handler: NamedHandler): boolean =>
    inFlight >= concurrency ||
    (handler.concurrency !== Infinity && (running.get(handler) ?? 0) >= handler.concurrency)
  const untilOneEnds = (): Promise<void> =>
    new Promise((resolve) => {
      wake = resolve
    })

  let end = Number.POSITIVE_INFINITY
  for (const run of runs) {
    while (isFull(run.handler)) await untilOneEnds()
    if (!scope.watch.mayStart(expectedMs(durations, run.handler))) {
      end = run.index
      break
    }
    count(run.handler, 1)
    perform(run, scope, ended)
  }
  while (inFlight > 0) await untilOneEnds()
  return end
}
