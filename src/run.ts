import type { NamedHandler } from './handler-set.ts'
import type { Item } from './items.ts'

/** One call of a handler, from planned to its outcome. */
export interface Call {
  readonly handler: NamedHandler
  /** planned → running → succeeded or failed; one that stays planned was not started. */
  state: 'planned' | 'running' | 'succeeded' | 'failed'
  error: unknown
  /** performance.now() at the call and at the outcome. */
  beganMs: number
  endedMs: number
  /** performance.now() at which it is given up. */
  limitMs: number
  /** Made when the handler first asks for its signal. */
  abort: AbortController | null
  /** Called once, at the outcome. */
  finished: ((call: Call) => void) | null
}

/** One handler for one event; the call of a batch handler spans several. */
export interface Run extends Call {
  readonly item: Item
  /** Index of the event in the claim. */
  readonly index: number
  /** Number of this attempt, from 1. */
  readonly attempt: number
  /** The payload does not fit the schema: to the dead letters without a further attempt. */
  invalid: boolean
}

export function planCall(handler: NamedHandler): Call {
  return {
    handler,
    state: 'planned',
    error: undefined,
    beganMs: 0,
    endedMs: 0,
    limitMs: 0,
    abort: null,
    finished: null,
  }
}

export function planRun(item: Item, index: number, handler: NamedHandler): Run {
  return {
    item,
    index,
    attempt: (item.delivery?.attempt ?? 0) + 1,
    invalid: false,
    handler,
    state: 'planned',
    error: undefined,
    beganMs: 0,
    endedMs: 0,
    limitMs: 0,
    abort: null,
    finished: null,
  }
}

export function startCall(call: Call): void {
  call.state = 'running'
  call.beganMs = performance.now()
}

/** Records the outcome; a later one, of a handler that was given up, changes nothing. */
export function finishCall(call: Call, state: 'succeeded' | 'failed', error?: unknown): void {
  if (call.state !== 'running') return
  call.state = state
  call.error = error
  call.endedMs = performance.now()
  call.finished?.(call)
}

/** Puts a run back to planned, for a group that is run again. */
export function resetRun(run: Run): void {
  run.state = 'planned'
  run.error = undefined
  run.invalid = false
  run.abort = null
  run.finished = null
}
