import type { TransactionSql } from '../db/client.ts'
import { type Counted, type CountsByName, countedTo } from './counted.ts'

/** Deliveries by what they wait for. */
export interface DeliveryCounts {
  /** Free, and due. */
  readonly due: Counted
  /** Free, and due later, the first of them at `nextDueAt`. */
  readonly later: Counted
  readonly nextDueAt: Date | null
  /** Held by a poll. */
  readonly leased: Counted
}

interface Row {
  readonly name: string
  readonly due: number
  readonly later: number
  readonly leased: number
}

/** Counts the deliveries of each state in the order of its index, `countedTo` of them at most. */
export async function countDeliveries(
  tx: TransactionSql,
  now: Date,
): Promise<{ counts: DeliveryCounts; names: CountsByName }> {
  const most = countedTo + 1
  const rows = await tx<Row[]>`
    with sample as materialized (
      (
        select event_xid, event_id, 'due' as state from loopless.delivery
        where lease is null and not alone and due_at <= ${now} order by due_at, id limit ${most}
      )
      union all
      (
        select event_xid, event_id, 'due' from loopless.delivery
        where lease is null and alone and due_at <= ${now} order by due_at, id limit ${most}
      )
      union all
      (
        select event_xid, event_id, 'later' from loopless.delivery
        where lease is null and not alone and due_at > ${now} order by due_at, id limit ${most}
      )
      union all
      (
        select event_xid, event_id, 'later' from loopless.delivery
        where lease is null and alone and due_at > ${now} order by due_at, id limit ${most}
      )
      union all
      (
        select event_xid, event_id, 'leased' from loopless.delivery
        where lease is not null order by due_at, id limit ${most}
      )
    )
    select
      e.name,
      count(*) filter (where s.state = 'due')::int as due,
      count(*) filter (where s.state = 'later')::int as later,
      count(*) filter (where s.state = 'leased')::int as leased
    from sample s
    join loopless.event e on e.xid = s.event_xid and e.id = s.event_id
    group by e.name`
  const sum = (state: 'due' | 'later' | 'leased'): Counted =>
    counted(rows.reduce((total, row) => total + row[state], 0))
  return {
    counts: {
      due: sum('due'),
      later: sum('later'),
      nextDueAt: await nextDueAt(tx, now),
      leased: sum('leased'),
    },
    names: rows,
  }
}

/** Counts the dead letters, `countedTo` of them at most. */
export async function countDead(tx: TransactionSql): Promise<{ counted: Counted; names: CountsByName }> {
  const rows = await tx<{ name: string; dead: number }[]>`
    with sample as materialized (
      select event_xid, event_id from loopless.dead_letter order by died_at desc limit ${countedTo + 1}
    )
    select e.name, count(*)::int as dead
    from sample s
    join loopless.event e on e.xid = s.event_xid and e.id = s.event_id
    group by e.name`
  return { counted: counted(rows.reduce((total, { dead }) => total + dead, 0)), names: rows }
}

async function nextDueAt(tx: TransactionSql, now: Date): Promise<Date | null> {
  const [row] = await tx<{ at: Date | null }[]>`
    select least(
      (select min(due_at) from loopless.delivery where lease is null and not alone and due_at > ${now}),
      (select min(due_at) from loopless.delivery where lease is null and alone and due_at > ${now})
    ) as at`
  return row?.at ?? null
}

function counted(count: number): Counted {
  return { count: Math.min(count, countedTo), isMore: count > countedTo }
}
