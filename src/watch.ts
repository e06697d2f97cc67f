import { TimeoutError } from './errors.ts'
import { type Call, finishCall } from './run.ts'

/** Decides what may still start, and gives up calls that take too long; one timer, however many calls. */
export interface Watch {
  /** performance.now() by which every handler has ended or is given up. */
  readonly endMs: number
  /** Whether a run of a handler that usually takes `expectedMs` should start now. */
  mayStart(expectedMs: number): boolean
  /** Sets the run's limit and watches it until it has ended. */
  add(call: Call): void
  remove(call: Call): void
  /** Stops the timer. */
  close(): void
}

/** @param signal aborted: nothing further starts; what runs may end */
export function openWatch(endMs: number, signal: AbortSignal | undefined): Watch {
  const running = new Set<Call>()
  let timer: NodeJS.Timeout | null = null
  let timerMs = Infinity

  const arm = (): void => {
    let earliest = Infinity
    for (const call of running) earliest = Math.min(earliest, call.limitMs)
    if (timer !== null) clearTimeout(timer)
    timer =
      earliest === Infinity
        ? null
        : setTimeout(giveUpLate, Math.max(1, Math.ceil(earliest - performance.now())))
    timerMs = earliest
  }
  const giveUpLate = (): void => {
    const nowMs = performance.now()
    for (const call of running) {
      if (call.limitMs > nowMs) continue
      running.delete(call)
      giveUp(call, endMs)
    }
    arm()
  }

  return {
    endMs,
    mayStart: (expectedMs) => !(signal?.aborted ?? false) && performance.now() + expectedMs < endMs,
    add: (call) => {
      call.limitMs = Math.min(call.beganMs + call.handler.timeoutSeconds * 1000, endMs)
      running.add(call)
      if (call.limitMs < timerMs) arm()
    },
    remove: (call) => {
      running.delete(call)
    },
    close: () => {
      if (timer !== null) clearTimeout(timer)
    },
  }
}

function giveUp(call: Call, endMs: number): void {
  const why =
    call.limitMs < endMs
      ? `Handler ${call.handler.name} did not end within its ${call.handler.timeoutSeconds} s (timeoutSeconds).`
      : `Handler ${call.handler.name} was still running when its poll had to end, ${((call.limitMs - call.beganMs) / 1000).toFixed(3)} s after it began.`
  const error = new TimeoutError(why)
  finishCall(call, 'failed', error)
  call.abort?.abort(error)
}
