import type { AttendOptions } from './attend-options.ts'
import { countOtherPollers } from './count-pollers.ts'
import type { Sql } from './db/client.ts'
import { type DrainOptions, type DrainReport, drain, emptyDrainReport } from './drain.ts'
import { beginWaking, countBacklog } from './idle.ts'
import { deadlineBeforeSuccession, invokeSuccessor } from './succession.ts'

/** What fan-out needs. */
export interface FanOutOptions {
  readonly sql: Sql
  /** The time that leases go by. */
  readonly clock: () => Date
  readonly maxPollers: number
  readonly helperBacklog: number
  /** After an invocation of helpers, looks again no sooner. Default 5,000 ms. */
  readonly helpAgainMs?: number
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
/** Until then a helper that was invoked has claimed something, and is counted among those at work. */
const helpAgainMs = 5_000
/** Of those that were counted, one may have ended just before: the predecessor above all. */
const countAgainMs = 1_000

/**
 * Fan-out of one poller: a helper for each `helperBacklog` events that wait, less those that are at work; `maxPollers` in
 * all. An invocation that fails is not missed: while the backlog stays long, it looks again.
 */
export function openFanOut(options: FanOutOptions): FanOut {
  const { sql, clock, maxPollers, helperBacklog, invoke } = options
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
      const others = await countOtherPollers(sql, clock(), maxPollers)
      lookAtMs = performance.now() + (others < wanted ? (options.helpAgainMs ?? helpAgainMs) : countAgainMs)
      for (let count = others; count < wanted; count++) {
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

export interface HelpOptions extends DrainOptions {
  /** As of the poller that invoked this one. */
  readonly maxPollers: number
  /** As in `attend`; only ever called for `continue`. Default: nobody is invoked. */
  readonly invoke?: AttendOptions['invoke']
}

/**
 * What a helper does: drains, unless as many pollers as may be are at work already; then it claims nothing. One that was
 * queued by Lambda comes late, and two pollers that invoke helpers do not know of each other's.
 * What it could not finish is found by whoever is awake. When nobody is any more, it invokes one successor.
 * @throws as `drain`
 */
export async function help({ maxPollers, invoke, ...options }: HelpOptions): Promise<DrainReport> {
  const { sql, clock, signal } = options
  if ((await countOtherPollers(sql, clock(), maxPollers)) >= maxPollers) return emptyDrainReport()
  if (invoke === undefined) return drain(options)
  const report = await drain({
    ...options,
    deadline: deadlineBeforeSuccession(options.deadline, clock()),
  })
  const isLeft = !report.drained && !signal?.aborted
  if (isLeft && (await beginWaking(sql))) await invokeSuccessor(sql, clock(), invoke)
  return report
}
