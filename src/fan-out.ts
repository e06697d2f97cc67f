import type { Sql } from './db/client.ts'
import { countBacklog } from './idle.ts'

/** What fan-out needs. */
export interface FanOutOptions {
  readonly sql: Sql
  readonly maxPollers: number
  readonly helperBacklog: number
  /** Invokes one helper. */
  readonly invoke: () => Promise<void>
}

/** Invokes helpers while a backlog is long. */
export interface FanOut {
  /** Looks whether the backlog is worth helpers, unless it looked a moment ago. @throws DatabaseError */
  look(): Promise<void>
  /** Waits for the invocations under way. @returns how many helpers are on their way */
  end(): Promise<number>
}

/** Counting a backlog costs about as much as a claim. */
const lookEveryMs = 250
/** Helpers end by themselves; while the backlog stays long, as many are invoked again after that. */
const helpAgainMs = 5_000

/**
 * Fan-out of one poller: a helper for each `helperBacklog` events that wait, `maxPollers` - 1 at most. A helper that
 * Lambda refuses, because as many run as may, is not missed.
 */
export function openFanOut({ sql, maxPollers, helperBacklog, invoke }: FanOutOptions): FanOut {
  const underWay: Promise<void>[] = []
  let helpers = 0
  let lookAtMs = 0
  return {
    async look() {
      if (maxPollers === 1 || performance.now() < lookAtMs) return
      lookAtMs = performance.now() + lookEveryMs
      const backlog = await countBacklog(sql, (maxPollers - 1) * helperBacklog)
      const wanted = Math.floor(backlog / helperBacklog)
      if (wanted === 0) return
      lookAtMs = performance.now() + helpAgainMs
      for (let count = 0; count < wanted; count++) {
        underWay.push(
          invoke().then(
            () => {
              helpers++
            },
            () => {}, // whoever invokes has said why
          ),
        )
      }
    },
    async end() {
      await Promise.all(underWay)
      return helpers
    },
  }
}
