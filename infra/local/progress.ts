import type { Sql } from '../../src/index.ts'

/** How far a run's events are. An event is handled when every handler of it has succeeded. */
export interface Progress {
  readonly handled: number
  /** Failed attempts after which there was, or will be, another. */
  readonly retried: number
  /** Dead letters. */
  readonly dead: number
  /** Events that are not handled and not dead. */
  readonly waiting: number
  /** Until the next retry, or the end of a lease; null when nothing waits for a time. */
  readonly dueInMs: number | null
}

/** What ended in the dead letters. */
export interface DeadLetter {
  readonly eventId: string
  readonly eventName: string
  readonly handler: string
  readonly reason: string
  readonly message: string
}

/** Of one handler: failed attempts that were tried again, and dead letters. */
export interface HandlerFailures {
  readonly handler: string
  readonly retried: number
  readonly dead: number
}

/** Reads how far the events of these ids are, from the tables: whoever polled. */
export async function readProgress(sql: Sql, ids: ReadonlyArray<string>): Promise<Progress> {
  const [row] = await sql<[Progress]>`
    with run as materialized (
      select e.id, e.xid from loopless.event e where e.id = any(${[...ids]}::text[]::bigint[])
    ), state as (
      select
        exists (
          select from loopless.batch b
          where b.settled_at is not null
            and (run.xid, run.id) > (b.after_xid, b.after_id)
            and (run.xid, run.id) <= (b.through_xid, b.through_id)
            and pg_visible_in_snapshot(run.xid, b.to_snapshot)
            and not pg_visible_in_snapshot(run.xid, b.from_snapshot)
        ) and not exists (select from loopless.delivery d where d.event_id = run.id) as is_settled,
        exists (select from loopless.dead_letter l where l.event_id = run.id) as is_dead
      from run
    )
    select
      count(*) filter (where is_settled and not is_dead)::integer as "handled",
      count(*) filter (where not is_settled)::integer as "waiting",
      (select count(*)::integer from loopless.dead_letter l where l.event_id in (select id from run)) as "dead",
      (
        select count(*)::integer from loopless.attempt a where a.event_id in (select id from run)
      ) - (
        select count(*)::integer from loopless.dead_letter l
        where l.event_id in (select id from run) and l.reason in ('exhausted', 'discarded')
      ) as "retried",
      extract(epoch from loopless.next_due() - clock_timestamp())::double precision * 1000 as "dueInMs"
    from state`
  return row
}

/** The dead letters among the events of these ids. */
export async function readDeadLetters(sql: Sql, ids: ReadonlyArray<string>): Promise<DeadLetter[]> {
  return sql<DeadLetter[]>`
    select l.event_id as "eventId", e.name as "eventName", l.handler, l.reason, l.error_message as "message"
    from loopless.dead_letter l
    join loopless.event e on e.xid = l.event_xid and e.id = l.event_id
    where l.event_id = any(${[...ids]}::text[]::bigint[])
    order by l.event_id, l.handler`
}

/** What went wrong by handler, among the events of these ids; handlers without a failure are left out. */
export async function readFailures(sql: Sql, ids: ReadonlyArray<string>): Promise<HandlerFailures[]> {
  return sql<HandlerFailures[]>`
    select
      handler,
      (sum(attempts) - count(*) filter (where reason in ('exhausted', 'discarded')))::integer as "retried",
      count(reason)::integer as "dead"
    from (
      select a.handler, null as reason, 1 as attempts
      from loopless.attempt a where a.event_id = any(${[...ids]}::text[]::bigint[])
      union all
      select l.handler, l.reason, 0
      from loopless.dead_letter l where l.event_id = any(${[...ids]}::text[]::bigint[])
    ) failures
    group by handler`
}

/** How many of these events there are of each name. */
export async function readNames(
  sql: Sql,
  ids: ReadonlyArray<string>,
): Promise<{ name: string; count: number }[]> {
  return sql<{ name: string; count: number }[]>`
    select e.name, count(*)::integer as "count"
    from loopless.event e where e.id = any(${[...ids]}::text[]::bigint[])
    group by e.name order by e.name`
}
