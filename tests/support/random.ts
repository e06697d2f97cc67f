/** Chance from a seed, so that a run can be told from its report. */
export interface Random {
  readonly seed: number
  /** From 0 up to 1. */
  next(): number
  /** A whole number of `least`–`most`. */
  whole(least: number, most: number): number
  /** True with this probability. */
  chance(probability: number): boolean
}

/** mulberry32, https://gist.github.com/tommyettinger/46a874533244883189143505d203312c */
export function seededRandom(seed: number = Math.floor(Math.random() * 2 ** 32)): Random {
  let state = seed
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    seed,
    next,
    whole: (least, most) => least + Math.floor(next() * (most - least + 1)),
    chance: (probability) => next() < probability,
  }
}
