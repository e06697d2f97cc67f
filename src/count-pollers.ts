import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import { pollerOf } from './token.ts'

/** Longer than a quick poll takes: one that is between two polls holds no lease for a moment, but has just claimed. */
const recentMs = 1_000

/**
 * Pollers at work beside this one: those that hold a lease, and those that have claimed from the log a moment ago.
 * One that was killed counts until its lease ends. Asked once in seconds; reads a few rows by index.
 * @param most counted up to so many, at most 1,000
 * @throws DatabaseError, SchemaMissingError
 */
export async function countOtherPollers(sql: Sql, now: Date, most: number): Promise<number> {
  const poller = pollerOf(sql)
  const rows = 100 + 10 * most
  const since = new Date(now.getTime() - recentMs)
  try {
    return await sql.begin(async (tx) => {
      // a plan that the session made while the tables were empty would scan them
      await tx`select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)`
      const [row] = await tx<{ pollers: number }[]>`
        with recursive held (due_at, lease) as ( -- the deliveries of a poll have one end of the lease: a step to the next
          (
            select d.due_at, d.lease from loopless.delivery d
            where d.lease is not null and d.due_at > ${now}
            order by d.due_at, d.id limit 1
          )
          union all
          select d.due_at, d.lease from held h cross join lateral (
            select d.due_at, d.lease from loopless.delivery d
            where d.lease is not null and d.due_at > h.due_at
            order by d.due_at, d.id limit 1
          ) d
        ), token (lease) as (
          (
            select b.lease from loopless.batch b
            where b.settled_at is null and b.lease is not null and b.leased_until > ${now}
            order by b.leased_until limit ${rows}
          )
          union all
          select b.lease from (
            select b.lease, b.claimed_at from loopless.batch b order by b.id desc limit ${rows}
          ) b
          where b.claimed_at > ${since}
          union all
          (select h.lease from held h limit ${rows})
        )
        select least(count(distinct left(t.lease::text, 18)), ${most})::integer as pollers
        from token t
        where left(t.lease::text, 18) <> ${poller}`
      return row?.pollers ?? 0
    })
  } catch (error) {
    throw databaseError(error)
  }
}
