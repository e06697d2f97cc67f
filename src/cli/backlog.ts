import type { TransactionSql } from '../db/client.ts'
import { type CountsByName, countedTo } from './counted.ts'

/** Events of the log that no poll has claimed. */
export interface Backlog {
  readonly events: number
  /** More than `countedTo` rows: `events` is about right. */
  readonly isEstimate: boolean
  /** When the first of those that were counted was published. */
  readonly oldestAt: Date | null
}

/**
 * The rest of the head's window, then what came after it: the transactions that were open at the end of a window by
 * probes, the others by the range behind it, as the claims do.
 */
export async function countBacklog(tx: TransactionSql): Promise<{ total: Backlog; names: CountsByName }> {
  const most = countedTo + 1
  const rows = await tx<{ name: string; backlog: number; looked: number; oldestAt: Date | null }[]>`
    with head as materialized (
      select b.from_snapshot, b.to_snapshot, b.through_xid, b.through_id
      from loopless.batch b
      where b.split_from is null
      order by b.id desc limit 1
    ), waiting as (
      select w.name, w.published_at, w.due_at from head h cross join lateral (
        (
          select e.name, e.published_at, e.due_at from loopless.event e
          where e.xid = any(array(select x from pg_snapshot_xip(h.from_snapshot) x where pg_visible_in_snapshot(x, h.to_snapshot)))
            and (e.xid, e.id) > (h.through_xid, h.through_id)
          limit ${most}
        )
        union all
        (
          select e.name, e.published_at, e.due_at from loopless.event e
          where (e.xid, e.id) > (h.through_xid, h.through_id)
            and e.xid >= pg_snapshot_xmax(h.from_snapshot) and e.xid < pg_snapshot_xmax(h.to_snapshot)
            and pg_visible_in_snapshot(e.xid, h.to_snapshot)
          order by e.xid, e.id limit ${most}
        )
        union all
        (
          select e.name, e.published_at, e.due_at from loopless.event e
          where e.xid = any(array(select x from pg_snapshot_xip(h.to_snapshot) x)) limit ${most}
        )
        union all
        (
          select e.name, e.published_at, e.due_at from loopless.event e
          where e.xid >= pg_snapshot_xmax(h.to_snapshot)
          order by e.xid, e.id limit ${most}
        )
      ) w
      limit ${most}
    )
    select
      name,
      count(*) filter (where due_at is null)::int as backlog,
      count(*)::int as looked,
      min(published_at) filter (where due_at is null) as "oldestAt"
    from waiting
    group by name`
  const names = rows.filter(({ backlog }) => backlog > 0)
  const events = names.reduce((sum, { backlog }) => sum + backlog, 0)
  const oldestAt = names.reduce<Date | null>((oldest, row) => earlier(oldest, row.oldestAt), null)
  const isEstimate = rows.reduce((sum, { looked }) => sum + looked, 0) > countedTo
  const total = {
    events: isEstimate ? Math.max(events, await estimateBacklog(tx)) : events,
    isEstimate,
    oldestAt,
  }
  return { total, names: names.map(({ name, backlog }) => ({ name, backlog })) }
}

/** By the ids given out since the head: too many by those rolled back, delayed or claimed out of order. */
async function estimateBacklog(tx: TransactionSql): Promise<number> {
  const [row] = await tx<{ estimate: number }[]>`
    select greatest(0, s.last_value - case when b.through_id = 0 then b.high_id else b.through_id end)::float8 as estimate
    from loopless.event_id_seq s, loopless.batch b
    where b.split_from is null
    order by b.id desc limit 1`
  return row?.estimate ?? 0
}

function earlier(one: Date | null, other: Date | null): Date | null {
  if (one === null || other === null) return one ?? other
  return one < other ? one : other
}
