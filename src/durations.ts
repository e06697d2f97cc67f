import type { NamedHandler } from './handler-set.ts'
import type { Run } from './run.ts'

/** How long each handler took lately, by name: a moving average in milliseconds. One drain keeps it. */
export type Durations = Map<string, number>

/**
 * What to expect of the next run; 0 while nothing is known. Twice the average: half of all runs are slower; but no
 * run goes on after its time-out.
 */
export function expectedMs(durations: Durations, handler: NamedHandler): number {
  return Math.min(2 * (durations.get(handler.name) ?? 0), handler.timeoutSeconds * 1000)
}

/** Learns from the runs of a poll. */
export function learn(durations: Durations, runs: ReadonlyArray<Run>): void {
  for (const run of runs) {
    if (run.state === 'planned') continue
    const ms = run.endedMs - run.beganMs
    const before = durations.get(run.handler.name)
    durations.set(run.handler.name, before === undefined ? ms : before + (ms - before) / 8)
  }
}
