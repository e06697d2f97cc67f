import type { TransactionSql } from '../db/client.ts'
import { type Counted, countedTo } from './counted.ts'

/** Whom publishes wake, and how that went. */
export interface WakeStatus {
  /** Null: nobody, the schedule alone polls. */
  readonly target: {
    readonly functionArn: string
    readonly region: string | null
    readonly timeoutMs: number
    readonly setAt: Date
  } | null
  /** Until then a poller is presumed awake or on its way; in the past: none is. Null: this role may not know. */
  readonly awakeUntil: Date | null
  /** Wakes that publishes have sent, or tried to; null: this role may not know. */
  readonly sent: number | null
  /** Wakes that could not be sent, as long as they are kept. */
  readonly failures: Counted
  readonly lastFailure: WakeFailure | null
}

/** A wake that could not be sent. */
export interface WakeFailure {
  readonly at: Date
  /** SQLSTATE, or STATUS: Lambda answered another than 202. */
  readonly code: string
  readonly message: string
}

export async function readWakeStatus(tx: TransactionSql): Promise<WakeStatus> {
  const [target] = await tx<NonNullable<WakeStatus['target']>[]>`
    select function_arn as "functionArn", region, timeout_ms as "timeoutMs", set_at as "setAt"
    from loopless.wake_target`
  // the view shows null where the role may not look, instead of failing
  const [sequences] = await tx<{ awakeUntil: Date | null; sent: number | null }[]>`
    select
      max(to_timestamp(last_value / 1000.0)) filter (where sequencename = 'wake_mark') as "awakeUntil",
      (max(coalesce(last_value + 1, 0)) filter (
        where sequencename = 'wake_count' and has_sequence_privilege('loopless.wake_count', 'select')
      ))::float8 as "sent"
    from pg_sequences
    where schemaname = 'loopless' and sequencename in ('wake_mark', 'wake_count')`
  const [failures] = await tx<{ count: number }[]>`
    select count(*)::int as count
    from (select from loopless.wake_failure limit ${countedTo + 1}) counted`
  const [lastFailure] = await tx<WakeFailure[]>`
    select failed_at as "at", error_code as "code", error_message as "message"
    from loopless.wake_failure
    order by failed_at desc limit 1`
  const count = failures?.count ?? 0
  return {
    target: target ?? null,
    awakeUntil: sequences?.awakeUntil ?? null,
    sent: sequences?.sent ?? null,
    failures: { count: Math.min(count, countedTo), isMore: count > countedTo },
    lastFailure: lastFailure ?? null,
  }
}
