import type { DrainOptions } from './drain.ts'
import { InvalidOptionError } from './errors.ts'

/** Why another poller is invoked: to go on where this one's time ends, or to help with a long backlog. */
export type PollerPurpose = 'continue' | 'help'

export interface AttendOptions extends Omit<DrainOptions, 'onPoll'> {
  /** After the last thing found, looks again for so long before going idle. 0–60,000 ms, default 200. */
  readonly lingerMs?: number
  /** Waits for publishers in flight for so long; what they publish later is left to the next wake. 0–600,000 ms, default 5,000. */
  readonly patienceMs?: number
  /**
   * Invokes another poller; resolves once it is on its way. Rejected: for `continue` the next wake or the schedule goes
   * on; for `help` nothing is lost. Default: nobody is invoked.
   */
  readonly invoke?: (purpose: PollerPurpose) => Promise<void>
  /** Pollers at once, this one included; each needs one database connection. 1–1,000, default 1. */
  readonly maxPollers?: number
  /** A helper for each so many events that wait. 1–1,000,000, default 1,000. */
  readonly helperBacklog?: number
}

/** The settings of an attendance that are numbers. */
export type AttendSettings = Required<
  Pick<AttendOptions, 'lingerMs' | 'patienceMs' | 'maxPollers' | 'helperBacklog'>
>

const ranges: Record<keyof AttendSettings, { fallback: number; least: number; most: number }> = {
  lingerMs: { fallback: 200, least: 0, most: 60_000 },
  patienceMs: { fallback: 5_000, least: 0, most: 600_000 },
  maxPollers: { fallback: 1, least: 1, most: 1_000 },
  helperBacklog: { fallback: 1_000, least: 1, most: 1_000_000 },
}

/** @throws InvalidOptionError for a setting that is no whole number in its range */
export function resolveAttendSettings(options: AttendOptions): AttendSettings {
  const resolved: Record<string, number> = {}
  for (const [key, { fallback, least, most }] of Object.entries(ranges)) {
    const value = options[key as keyof AttendSettings] ?? fallback
    if (!Number.isInteger(value) || value < least || value > most) {
      throw new InvalidOptionError(
        `Expected ${key} to be a whole number of ${least}–${most}, got ${String(value)}.`,
      )
    }
    resolved[key] = value
  }
  return resolved as unknown as AttendSettings
}
