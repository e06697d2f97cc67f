import { describe, expect, it } from 'vitest'
import { retryDelayMs } from './backoff.ts'

const handler = { baseDelaySeconds: 15, maxDelaySeconds: 3_600, jitter: 0 }

describe('without jitter', () => {
  it('doubles the base after each further failure, to the millisecond', () => {
    const delays = [1, 2, 3, 4, 5].map((attempt) => retryDelayMs(handler, attempt, 0.7))
    expect(delays).toEqual([15_000, 30_000, 60_000, 120_000, 240_000])
  })

  it('keeps fractions of a second', () => {
    const quick = { ...handler, baseDelaySeconds: 0.0123 }
    expect([1, 2, 3].map((attempt) => retryDelayMs(quick, attempt, 0))).toEqual([12, 25, 49])
  })

  it('stops at the longest delay, also after 65,535 attempts', () => {
    expect([8, 9, 10, 1_100, 65_535].map((attempt) => retryDelayMs(handler, attempt, 0))).toEqual([
      1_920_000, 3_600_000, 3_600_000, 3_600_000, 3_600_000,
    ])
  })

  it('is never longer than the longest delay, however long the base', () => {
    expect(retryDelayMs({ ...handler, maxDelaySeconds: 5 }, 1, 0)).toBe(5_000)
  })

  it('is nothing at all with a base of 0', () => {
    expect(retryDelayMs({ ...handler, baseDelaySeconds: 0 }, 9, 0)).toBe(0)
  })
})

describe('with jitter', () => {
  it('spreads the delay evenly around it, by its share to both sides', () => {
    const spread = (jitter: number): number[] =>
      [0, 0.25, 0.5, 0.75, 1 - Number.EPSILON].map((random) =>
        retryDelayMs({ ...handler, jitter }, 2, random),
      )
    expect(spread(0.2)).toEqual([24_000, 27_000, 30_000, 33_000, 36_000])
    expect(spread(1)).toEqual([0, 15_000, 30_000, 45_000, 60_000])
  })

  it('spreads what waits for the longest delay too', () => {
    expect(retryDelayMs({ ...handler, jitter: 0.2 }, 20, 0)).toBe(2_880_000)
    expect(retryDelayMs({ ...handler, jitter: 0.2 }, 20, 1)).toBe(4_320_000)
  })
})
