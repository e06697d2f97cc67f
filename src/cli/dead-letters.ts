import type { Sql, TransactionSql } from '../db/client.ts'

/** A dead letter as it is listed. */
export interface DeadLetter {
  readonly id: string
  readonly eventId: string
  readonly eventName: string
  readonly handler: string
  readonly reason: string
  readonly attempts: number
  readonly diedAt: Date
  readonly errorClass: string
  readonly errorMessage: string
}

/** A dead letter with its event and every failed attempt. */
export interface DeadLetterDetails extends DeadLetter {
  readonly publishedAt: Date
  /** JSON text, to the letter. */
  readonly payload: string
  readonly headers: Readonly<Record<string, string>> | null
  readonly failures: ReadonlyArray<Failure>
}

/** A failed attempt. */
export interface Failure {
  readonly handler: string
  readonly attempt: number
  readonly beganAt: Date
  readonly endedAt: Date
  readonly errorClass: string
  readonly errorMessage: string
  readonly errorStack: string | null
}

/** Which dead letters; undefined: whatever it is. */
export interface DeadLetterFilter {
  readonly handler?: string
  /** An event name, or a pattern such as `order.*`. */
  readonly event?: string
}

/** The newest first. `total` counts all that the filter lets through. */
export async function listDeadLetters(
  sql: Sql,
  filter: DeadLetterFilter,
  limit: number,
): Promise<{ total: number; letters: DeadLetter[] }> {
  const letters = await sql<DeadLetter[]>`
    select
      d.id, d.event_id as "eventId", e.name as "eventName", d.handler, d.reason, d.attempts,
      d.died_at as "diedAt", d.error_class as "errorClass", d.error_message as "errorMessage"
    from loopless.dead_letter d
    join loopless.event e on e.xid = d.event_xid and e.id = d.event_id
    where ${matching(sql, filter)}
    order by d.died_at desc, d.id desc
    limit ${limit}`
  const [row] = await sql<{ total: number }[]>`
    select count(*)::int as total
    from loopless.dead_letter d
    join loopless.event e on e.xid = d.event_xid and e.id = d.event_id
    where ${matching(sql, filter)}`
  return { total: row?.total ?? 0, letters: [...letters] }
}

/** Ids of all dead letters that the filter lets through. */
export async function findDeadLetters(sql: Sql, filter: DeadLetterFilter): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select d.id
    from loopless.dead_letter d
    join loopless.event e on e.xid = d.event_xid and e.id = d.event_id
    where ${matching(sql, filter)}`
  return rows.map(({ id }) => id)
}

/** Which of these ids are dead letters. */
export async function existingDeadLetters(sql: Sql, ids: ReadonlyArray<string>): Promise<Set<string>> {
  const rows = await sql<{ id: string }[]>`
    select id from loopless.dead_letter where id = any(${[...ids]}::text[]::bigint[])`
  return new Set(rows.map(({ id }) => id))
}

/** Everything there is of a dead letter; null when there is none of this id. */
export async function readDeadLetter(sql: Sql, id: string): Promise<DeadLetterDetails | null> {
  const [letter] = await sql<Omit<DeadLetterDetails, 'failures'>[]>`
    select
      d.id, d.event_id as "eventId", e.name as "eventName", d.handler, d.reason, d.attempts,
      d.died_at as "diedAt", d.error_class as "errorClass", d.error_message as "errorMessage",
      e.published_at as "publishedAt", e.payload::text as payload, e.headers
    from loopless.dead_letter d
    join loopless.event e on e.xid = d.event_xid and e.id = d.event_id
    where d.id = ${id}`
  if (!letter) return null
  const failures = await readFailures(sql, letter.eventId)
  return { ...letter, failures: failures.filter(({ handler }) => handler === letter.handler) }
}

/** The failed attempts of an event, in the order of their recording. */
export async function readFailures(sql: Sql | TransactionSql, eventId: string): Promise<Failure[]> {
  const rows = await sql<Failure[]>`
    select
      handler, attempt, began_at as "beganAt", ended_at as "endedAt",
      error_class as "errorClass", error_message as "errorMessage", error_stack as "errorStack"
    from loopless.attempt
    where event_id = ${eventId}
    order by id`
  return [...rows]
}

function matching(sql: Sql, { handler, event }: DeadLetterFilter) {
  const prefix = event?.endsWith('*') ? event.slice(0, -1) : null
  return sql`
    (${handler ?? null}::text is null or d.handler = ${handler ?? null})
    and (${event ?? null}::text is null or e.name = ${event ?? null} or starts_with(e.name, ${prefix}::text))`
}
