import type { Sql } from './db/client.ts'
import type { Durations } from './durations.ts'
import { InvalidOptionError } from './errors.ts'
import { checkHandlerSet, type HandlerSet } from './handler-set.ts'
import type { ClaimLimits } from './lease.ts'
import { type Limits, resolveLimits } from './limits.ts'
import type { LogSink } from './log.ts'
import { emptyReport, type PollReport } from './report.ts'

export interface PollOptions {
  /** A client made by `connect`; one connection is used. */
  readonly sql: Sql
  readonly handlers: HandlerSet
  readonly limits?: Limits
  /** Aborted: nothing further is started, what was not started is given back. */
  readonly signal?: AbortSignal
  /** How long handlers took lately; kept by a drain. */
  readonly durations?: Durations
  /** Where handlers' `context.log` goes. Default: JSON lines on stdout. */
  readonly log?: LogSink
  /** For the jitter of delays, from 0 up to 1. Default Math.random. */
  readonly random?: () => number
}

/** A poll under way: what its stages share. */
export interface Step {
  readonly now: Date
  /** performance.now() at `now`. */
  readonly startMs: number
  /** performance.now() by which its handlers have ended or are given up. */
  readonly endMs: number
  readonly options: PollOptions
  readonly limits: Required<Limits>
  readonly durations: Durations
  readonly report: PollReport
}

/** @throws InvalidOptionError */
export function openStep(now: Date, options: PollOptions): Step {
  if (!(now instanceof Date) || Number.isNaN(now.getTime())) {
    throw new InvalidOptionError(`Expected now to be a valid Date, got ${String(now)}.`)
  }
  checkHandlerSet(options.handlers)
  const startMs = performance.now()
  const limits = resolveLimits(options.limits)
  return {
    now,
    startMs,
    endMs: startMs + limits.seconds * 1000,
    options,
    limits,
    durations: options.durations ?? new Map(),
    report: emptyReport(),
  }
}

/** What a step may claim; its lease ends a margin after its handlers. */
export function claimLimits({ now, limits, options }: Step): ClaimLimits {
  return {
    now,
    until: new Date(now.getTime() + (limits.seconds + limits.leaseMarginSeconds) * 1000),
    events: limits.events,
    bytes: limits.bytes,
    deliveries: Math.max(1, Math.ceil(limits.events * limits.deliveryShare)),
    handlerSet: options.handlers.hash,
  }
}

/** Counts the time of a stage in the step's report. */
export async function timed<Result>(
  step: Step,
  stage: keyof PollReport['ms'],
  run: () => PromiseLike<Result>,
): Promise<Result> {
  const beganMs = performance.now()
  try {
    return await run()
  } finally {
    step.report.ms[stage] += performance.now() - beganMs
  }
}
