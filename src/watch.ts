import { TimeoutError } from './errors.ts'
import { finishRun, type Run } from './run.ts'

/** Decides what may still start, and gives up runs that take too long; one timer, however many runs. */
export interface Watch {
  /** performance.now() by which every handler has ended or is given up. */
  readonly endMs: number
  /** Whether a run of a handler that usually takes `expectedMs` should start now. */
  mayStart(expectedMs: number): boolean
  /** Sets the run's limit and watches it until it has finished. */
  add(run: Run): void
  remove(run: Run): void
  /** Stops the timer. */
  close(): void
}

/** @param signal aborted: nothing further starts; what runs may end */
export function openWatch(endMs: number, signal: AbortSignal | undefined): Watch {
  const running = new Set<Run>()
  let timer: NodeJS.Timeout | null = null
  let timerMs = Infinity

  const arm = (): void => {
    let earliest = Infinity
    for (const run of running) earliest = Math.min(earliest, run.limitMs)
    if (timer !== null) clearTimeout(timer)
    timer = earliest === Infinity ? null : setTimeout(giveUpLate, Math.max(1, Math.ceil(earliest - performance.now())))
    timerMs = earliest
  }
  const giveUpLate = (): void => {
    const nowMs = performance.now()
    for (const run of running) {
      if (run.limitMs > nowMs) continue
      running.delete(run)
      giveUp(run, endMs)
    }
    arm()
  }

  return {
    endMs,
    mayStart: (expectedMs) => !(signal?.aborted ?? false) && performance.now() + expectedMs < endMs,
    add: (run) => {
      run.limitMs = Math.min(run.beganMs + run.handler.timeoutSeconds * 1000, endMs)
      running.add(run)
      if (run.limitMs < timerMs) arm()
    },
    remove: (run) => {
      running.delete(run)
    },
    close: () => {
      if (timer !== null) clearTimeout(timer)
    },
  }
}

function giveUp(run: Run, endMs: number): void {
  const why =
    run.limitMs < endMs
      ? `Handler ${run.handler.name} did not end within its ${run.handler.timeoutSeconds} s (timeoutSeconds).`
      : `Handler ${run.handler.name} was still running when its poll had to end, ${((run.limitMs - run.beganMs) / 1000).toFixed(3)} s after it began.`
  const error = new TimeoutError(why)
  finishRun(run, 'failed', error)
  run.abort?.abort(error)
}
