import type { Sql, TransactionSql } from '../db/client.ts'
import { matches } from '../handler.ts'
import { type Failure, readFailures } from './dead-letters.ts'

/** What happens to an event now, the least finished part of it first. */
export type EventState =
  /** No poll has claimed it. */
  | 'unclaimed'
  /** A poll holds it. */
  | 'leased'
  /** Claimed once, free to be claimed again: given back, or its poller died. */
  | 'open'
  /** It waits for a handler as a delivery. */
  | 'waiting'
  /** A handler gave up; nothing waits. */
  | 'dead'
  /** Claimed and settled, and no registered handler takes it. */
  | 'unhandled'
  /** Claimed and settled; no handler has anything left to do. */
  | 'handled'

/** A slice of the log that the event was in. */
export interface BatchRecord {
  readonly id: string
  readonly size: number
  /** The batch it is a part of, given back unstarted; null: cut from the log. */
  readonly splitFrom: string | null
  readonly claimedAt: Date | null
  readonly settledAt: Date | null
  readonly isLeased: boolean
  readonly leasedUntil: Date
  /** The window, as two Postgres snapshots. */
  readonly fromSnapshot: string
  readonly toSnapshot: string
}

/** What waits for a handler. */
export interface DeliveryRecord {
  readonly id: string
  /** Null: every handler that matches. */
  readonly handler: string | null
  readonly reason: string
  /** Attempts charged so far. */
  readonly attempt: number
  readonly isLeased: boolean
  /** When it is due; while it is leased, the end of the lease. */
  readonly dueAt: Date
  readonly alone: boolean
}

/** A handler that gave up. */
export interface DeadRecord {
  readonly id: string
  readonly handler: string
  readonly reason: string
  readonly attempts: number
  readonly diedAt: Date
}

/** Everything that is known of an event. */
export interface EventHistory {
  readonly state: EventState
  readonly event: {
    readonly id: string
    readonly name: string
    readonly publishedAt: Date
    /** The transaction that published it; `0`: in an earlier cluster. */
    readonly xid: string
    readonly dueAt: Date | null
    readonly dedupeKey: string | null
    readonly headers: Readonly<Record<string, string>> | null
    readonly bytes: number
    /** JSON text, to the letter. */
    readonly payload: string
  }
  /** Oldest first; empty when it was not claimed from the log, or retention removed the batch. */
  readonly batches: ReadonlyArray<BatchRecord>
  /** Null: no handlers are registered. */
  readonly handlers: ReadonlyArray<{ readonly name: string; readonly pattern: string }> | null
  readonly deliveries: ReadonlyArray<DeliveryRecord>
  readonly failures: ReadonlyArray<Failure>
  readonly dead: ReadonlyArray<DeadRecord>
}

/** An event that is not in the log, and what is left of it. */
export interface MissingEvent {
  readonly newestId: string
  readonly failures: ReadonlyArray<Failure>
}

/** Reads everything known of an event from one snapshot. */
export async function readHistory(sql: Sql, id: string): Promise<EventHistory | MissingEvent> {
  return sql.begin('isolation level repeatable read read only', async (tx) => {
    const found = await readEvent(tx, id)
    const failures = await readFailures(tx, id)
    if (!found) return { newestId: await newestId(tx), failures }
    const { isClaimed, ...event } = found
    const batches = await readBatches(tx, event)
    const handlers = await readHandlers(tx, event.name)
    const deliveries = await readDeliveries(tx, id)
    const dead = await readDead(tx, id)
    const state = stateOf({ isClaimed, batches, handlers, deliveries, dead })
    return { state, event, batches, handlers, deliveries, failures, dead }
  })
}

type Event = EventHistory['event']

async function readEvent(
  tx: TransactionSql,
  id: string,
): Promise<(Event & { isClaimed: boolean }) | undefined> {
  const [event] = await tx<(Event & { isClaimed: boolean })[]>`
    select
      e.id, e.name, e.published_at as "publishedAt", e.xid::text, e.due_at as "dueAt", e.headers, e.bytes,
      e.payload::text as payload,
      (select k.key from loopless.dedupe_key k where k.event_name = e.name and k.event_id = e.id) as "dedupeKey",
      e.due_at is not null
        or pg_visible_in_snapshot(e.xid, h.from_snapshot)
        or pg_visible_in_snapshot(e.xid, h.to_snapshot) and (e.xid, e.id) <= (h.through_xid, h.through_id)
        as "isClaimed"
    from loopless.event e
    left join lateral (
      select b.from_snapshot, b.to_snapshot, b.through_xid, b.through_id
      from loopless.batch b
      where b.split_from is null
      order by b.id desc limit 1
    ) h on true
    where e.id = ${id}`
  return event
}

/** Batches whose slice holds the event; one that was split keeps its end, so it is there beside its part. */
async function readBatches(tx: TransactionSql, { xid, id, dueAt }: Event): Promise<BatchRecord[]> {
  if (dueAt !== null) return []
  const rows = await tx<BatchRecord[]>`
    select
      b.id, b.size, b.split_from as "splitFrom", b.claimed_at as "claimedAt", b.settled_at as "settledAt",
      b.settled_at is null and b.lease is not null as "isLeased", b.leased_until as "leasedUntil",
      b.from_snapshot::text as "fromSnapshot", b.to_snapshot::text as "toSnapshot"
    from loopless.batch b
    where (b.after_xid, b.after_id) < (${xid}::text::xid8, ${id}::bigint)
      and (b.through_xid, b.through_id) >= (${xid}::text::xid8, ${id}::bigint)
      and pg_visible_in_snapshot(${xid}::text::xid8, b.to_snapshot)
      and not pg_visible_in_snapshot(${xid}::text::xid8, b.from_snapshot)
    order by b.id`
  return [...rows]
}

async function readHandlers(tx: TransactionSql, eventName: string): Promise<EventHistory['handlers']> {
  const [bus] = await tx<
    { handlerSet: string | null }[]
  >`select handler_set as "handlerSet" from loopless.bus`
  if (!bus?.handlerSet) return null
  const handlers = await tx<{ name: string; pattern: string }[]>`
    select name, pattern from loopless.handler order by name`
  return handlers.filter(({ pattern }) => matches(pattern, eventName))
}

async function readDeliveries(tx: TransactionSql, id: string): Promise<DeliveryRecord[]> {
  const rows = await tx<DeliveryRecord[]>`
    select id, handler, reason, attempt, lease is not null as "isLeased", due_at as "dueAt", alone
    from loopless.delivery
    where event_id = ${id}
    order by id`
  return [...rows]
}

async function readDead(tx: TransactionSql, id: string): Promise<DeadRecord[]> {
  const rows = await tx<DeadRecord[]>`
    select id, handler, reason, attempts, died_at as "diedAt"
    from loopless.dead_letter
    where event_id = ${id}
    order by id`
  return [...rows]
}

async function newestId(tx: TransactionSql): Promise<string> {
  const [row] = await tx<{ id: string }[]>`
    select case when is_called then last_value else 0 end as id from loopless.event_id_seq`
  return row?.id ?? '0'
}

function stateOf({
  isClaimed,
  batches,
  handlers,
  deliveries,
  dead,
}: Pick<EventHistory, 'batches' | 'handlers' | 'deliveries' | 'dead'> & { isClaimed: boolean }): EventState {
  if (!isClaimed) return 'unclaimed'
  const last = batches.at(-1)
  if (last?.isLeased || deliveries.some(({ isLeased }) => isLeased)) return 'leased'
  if (last !== undefined && last.settledAt === null) return 'open'
  if (deliveries.length > 0) return 'waiting'
  if (dead.length > 0) return 'dead'
  return handlers?.length === 0 ? 'unhandled' : 'handled'
}
