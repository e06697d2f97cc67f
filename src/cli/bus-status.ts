import type { Sql, TransactionSql } from '../db/client.ts'
import { type Backlog, countBacklog } from './backlog.ts'
import type { Counted, CountsByName, EventStatus } from './counted.ts'
import { countDead, countDeliveries, type DeliveryCounts } from './delivery-counts.ts'
import { readWakeStatus, type WakeStatus } from './wake-status.ts'

/** Batches of one state, and the events in them. */
export interface BatchCount {
  readonly batches: number
  readonly events: number
}

/** The state of the bus at one moment. */
export interface BusStatus {
  readonly now: Date
  readonly backlog: Backlog
  readonly batches: {
    /** A poll is at work on them; the last lease ends at `leasedUntil`. */
    readonly leased: BatchCount
    readonly leasedUntil: Date | null
    /** Their poller died: the next polls run their events again. */
    readonly expired: BatchCount
    /** Given back, free to be claimed. */
    readonly open: BatchCount
  }
  readonly deliveries: DeliveryCounts
  readonly dead: Counted
  readonly events: ReadonlyArray<EventStatus>
  /** Null: no handlers are registered. */
  readonly registered: {
    readonly handlerSet: string
    readonly at: Date
    readonly handlers: ReadonlyArray<{ readonly name: string; readonly pattern: string }>
  } | null
  readonly wake: WakeStatus
  /** The database came from another cluster and no poll has run here yet: the backlog is not known. */
  readonly isMoved: boolean
}

/** Reads the state of the bus from one snapshot, cheaply whatever the backlog: no kind of row is read beyond `countedTo`. */
export async function readStatus(sql: Sql, now: Date): Promise<BusStatus> {
  return sql.begin('isolation level repeatable read read only', async (tx) => {
    // few of many rows: statistics of yesterday must not lead to a scan of all
    await tx`set local enable_seqscan = off`
    await tx`set local enable_hashjoin = off`
    await tx`set local enable_mergejoin = off`
    const backlog = await countBacklog(tx)
    const deliveries = await countDeliveries(tx, now)
    const dead = await countDead(tx)
    return {
      now,
      backlog: backlog.total,
      batches: await countBatches(tx, now),
      deliveries: deliveries.counts,
      dead: dead.counted,
      events: byName([backlog.names, deliveries.names, dead.names]),
      registered: await readRegistered(tx),
      wake: await readWakeStatus(tx),
      isMoved: await isMoved(tx),
    }
  })
}

async function countBatches(tx: TransactionSql, now: Date): Promise<BusStatus['batches']> {
  const rows = await tx<
    { state: 'leased' | 'expired' | 'open'; batches: number; events: number; until: Date }[]
  >`
    select
      case when lease is null then 'open' when leased_until > ${now} then 'leased' else 'expired' end as state,
      count(*)::int as batches,
      sum(size)::float8 as events,
      max(leased_until) as until
    from loopless.batch
    where settled_at is null
    group by 1`
  const of = (state: string): BatchCount => {
    const row = rows.find((one) => one.state === state)
    return { batches: row?.batches ?? 0, events: row?.events ?? 0 }
  }
  const leasedUntil = rows.find(({ state }) => state === 'leased')?.until ?? null
  return { leased: of('leased'), leasedUntil, expired: of('expired'), open: of('open') }
}

async function readRegistered(tx: TransactionSql): Promise<BusStatus['registered']> {
  const [bus] = await tx<{ handlerSet: string | null; at: Date }[]>`
    select handler_set as "handlerSet", registered_at as at from loopless.bus`
  if (!bus?.handlerSet) return null
  const handlers = await tx<{ name: string; pattern: string }[]>`
    select name, pattern from loopless.handler order by name`
  return { handlerSet: bus.handlerSet, at: bus.at, handlers: [...handlers] }
}

async function isMoved(tx: TransactionSql): Promise<boolean> {
  const rows = await tx`
    select from loopless.bus b
    where b.cluster <> (select c.system_identifier::text from pg_control_system() c)`
  return rows.length > 0
}

function byName(lists: ReadonlyArray<CountsByName>): EventStatus[] {
  const rows = new Map<string, EventStatus>()
  for (const counts of lists.flat()) {
    const { name } = counts
    const none = { name, backlog: 0, due: 0, later: 0, leased: 0, dead: 0 }
    rows.set(name, { ...none, ...rows.get(name), ...counts })
  }
  const total = ({ backlog, due, later, leased, dead }: EventStatus): number =>
    backlog + due + later + leased + dead
  return [...rows.values()].sort(
    (one, other) => total(other) - total(one) || (one.name < other.name ? -1 : 1),
  )
}
