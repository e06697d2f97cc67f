import type { Item } from './claim.ts'
import type { NamedHandler } from './handler-set.ts'

/** One handler for one event, from planned to its outcome. */
export interface Run {
  readonly item: Item
  /** Index of the event in the claim. */
  readonly index: number
  readonly handler: NamedHandler
  /** Number of this attempt, from 1. */
  readonly attempt: number
  /** planned → running → succeeded or failed; one that stays planned was not started. */
  state: 'planned' | 'running' | 'succeeded' | 'failed'
  error: unknown
  /** Does not fit the schema: to the dead letters without a further attempt. */
  invalid: boolean
  /** performance.now() at the call and at the outcome. */
  beganMs: number
  endedMs: number
  /** performance.now() at which it is given up. */
  limitMs: number
  /** Made when the handler first asks for its signal. */
  abort: AbortController | null
  /** Called once, at the outcome. */
  finished: (() => void) | null
}

export function planRun(item: Item, index: number, handler: NamedHandler): Run {
  return {
    item,
    index,
    handler,
    attempt: (item.delivery?.attempt ?? 0) + 1,
    state: 'planned',
    error: undefined,
    invalid: false,
    beganMs: 0,
    endedMs: 0,
    limitMs: 0,
    abort: null,
    finished: null,
  }
}

/** Records the outcome; a later one, of a handler that was given up, changes nothing. */
export function finishRun(run: Run, state: 'succeeded' | 'failed', error?: unknown): void {
  if (run.state !== 'running') return
  run.state = state
  run.error = error
  run.endedMs = performance.now()
  run.finished?.()
}

/** Puts a run back to planned, for a group that is run again. */
export function resetRun(run: Run): void {
  run.state = 'planned'
  run.error = undefined
  run.invalid = false
  run.abort = null
  run.finished = null
}
