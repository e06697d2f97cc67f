import type { Handler } from './handler.ts'

/**
 * Milliseconds to wait after failure number `attempt` (1 is the first): base · 2^(attempt−1), at most the longest
 * delay, with a random share of ± `jitter` so that what failed together does not return together.
 * @param random from 0 up to 1
 */
export function retryDelayMs(
  handler: Pick<Handler, 'baseDelaySeconds' | 'maxDelaySeconds' | 'jitter'>,
  attempt: number,
  random: number,
): number {
  const seconds = Math.min(handler.baseDelaySeconds * 2 ** Math.min(attempt - 1, 60), handler.maxDelaySeconds)
  return Math.round(seconds * 1000 * (1 + handler.jitter * (2 * random - 1)))
}
