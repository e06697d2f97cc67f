import { InvalidOptionError } from './errors.ts'

/** What bounds one poll. */
export interface Limits {
  /** New events a claim takes. 1–10,000, default 500. */
  readonly events?: number
  /** Bytes of payload text a claim takes from the log, and the same share for deliveries on top; one event of each is always taken. Default 16 MiB. */
  readonly bytes?: number
  /** Due deliveries a poll takes beside new events, as a share of `events`. 0.01–1, default 0.2; with no new events, all of it. */
  readonly deliveryShare?: number
  /** Runs of plain handlers at once. 1–1,000, default 50. */
  readonly concurrency?: number
  /** Handlers end or are given up by then. 0.01–900 s, default 60. */
  readonly seconds?: number
  /** The lease lasts that much longer than `seconds`. 0–900 s, default 15. */
  readonly leaseMarginSeconds?: number
  /** Deliveries that run alone, one by one, a poll. 0–1,000, default 20. */
  readonly alone?: number
}

const ranges: Record<keyof Limits, { fallback: number; least: number; most: number; whole: boolean }> = {
  events: { fallback: 500, least: 1, most: 10_000, whole: true },
  bytes: { fallback: 16 * 1024 * 1024, least: 1, most: 1024 * 1024 * 1024, whole: true },
  deliveryShare: { fallback: 0.2, least: 0.01, most: 1, whole: false },
  concurrency: { fallback: 50, least: 1, most: 1_000, whole: true },
  seconds: { fallback: 60, least: 0.01, most: 900, whole: false },
  leaseMarginSeconds: { fallback: 15, least: 0, most: 900, whole: false },
  alone: { fallback: 20, least: 0, most: 1_000, whole: true },
}

/** @throws InvalidOptionError for a limit out of its range */
export function resolveLimits(limits: Limits = {}): Required<Limits> {
  const resolved: Record<string, number> = {}
  for (const [key, { fallback, least, most, whole }] of Object.entries(ranges)) {
    const value = limits[key as keyof Limits] ?? fallback
    if (
      typeof value !== 'number' ||
      !(value >= least && value <= most) ||
      (whole && !Number.isInteger(value))
    ) {
      throw new InvalidOptionError(
        `Expected limits.${key} to be ${whole ? 'a whole number of ' : ''}${least}–${most}, got ${String(value)}.`,
      )
    }
    resolved[key] = value
  }
  return resolved as unknown as Required<Limits>
}
