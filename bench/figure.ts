import type { BenchServer } from './server.ts'

/** One line of the table. */
export interface Figure {
  readonly what: string
  readonly value: number
  readonly unit: 'events/s' | 'B' | 'KB' | 'ms' | ''
  /** The same done by hand in the same run; null when there is nothing to compare with. */
  readonly peer: number | null
  /** Median of the ratios of the runs, this against the peer. */
  readonly ratio: number | null
  /** What to reach; null: for information. */
  readonly target: Target | null
}

/** A bound on the ratio when there is one, else on the value. */
export interface Target {
  readonly atLeast?: number
  readonly atMost?: number
}

export interface Bench {
  readonly server: BenchServer
  /** Rounds of each measurement. */
  readonly rounds: number
}

/** A group of the table: each figure as soon as it is measured. */
export type Benchmark = (bench: Bench) => AsyncIterable<Figure>

/** Whether a figure is within its target; null without one. */
export function isReached({ value, ratio, target }: Figure): boolean | null {
  if (target === null) return null
  const measured = ratio ?? value
  return measured >= (target.atLeast ?? -Infinity) && measured <= (target.atMost ?? Infinity)
}

export function median(values: ReadonlyArray<number>): number {
  const sorted = [...values].sort((one, other) => one - other)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2
}

/**
 * Runs two ways of doing the same in turn, so that whatever else the machine does meets both, each first in every
 * other round. Returns the medians and the median of the ratios.
 */
export async function compare(
  rounds: number,
  ours: () => Promise<number>,
  peers: () => Promise<number>,
): Promise<{ value: number; peer: number; ratio: number }> {
  const values: number[] = []
  const peerValues: number[] = []
  for (let round = 0; round < rounds; round++) {
    const turns = [async () => values.push(await ours()), async () => peerValues.push(await peers())]
    for (const turn of round % 2 === 0 ? turns : turns.reverse()) await turn()
  }
  return { value: median(values), peer: median(peerValues), ratio: median(ratiosOf(values, peerValues)) }
}

/** Each value against its peer, round by round. */
export function ratiosOf(values: ReadonlyArray<number>, peers: ReadonlyArray<number>): number[] {
  return values.map((value, round) => value / (peers[round] ?? Number.NaN))
}

/** Events a second of an action that returns how many there were. */
export async function rateOf(action: () => Promise<number>): Promise<number> {
  const beganMs = performance.now()
  const count = await action()
  return (count / (performance.now() - beganMs)) * 1000
}
