import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import { InvalidOptionError } from './errors.ts'

const dayMs = 86_400_000

/** How long what is settled is kept. */
export interface PruneSettings {
  /**
   * Settled events and batches: days since the batch was settled, the event was published and due, and a handler failed
   * with it for the last time. 0 or more, default 7.
   */
  readonly eventDays?: number
  /** Failed attempts, and failed wakes: days since they ended. 0 or more, default 30. */
  readonly attemptDays?: number
  /** Dead letters: days since they died. 0 or more, default 30. */
  readonly deadLetterDays?: number
  /** Rows that one short transaction looks at. 1–100,000, default 5,000. */
  readonly chunk?: number
  /** Stops before the next chunk; what was removed stays removed. */
  readonly signal?: AbortSignal
}

/** What was removed. */
export interface PruneReport {
  readonly events: number
  readonly batches: number
  readonly attempts: number
  readonly deadLetters: number
  readonly dedupeKeys: number
  readonly wakeFailures: number
  /** False when the signal stopped it: more may be left. */
  readonly isComplete: boolean
}

/** One chunk: rows removed, and whether there may be more. */
interface Step {
  readonly removed: number
  readonly isLast: boolean
}

/**
 * Retention: removes what is settled and old, in short transactions, from the old end of each table. Keeps every
 * event that is not claimed, not settled, waiting for a handler or in the dead letters, and the attempts of such events.
 * @throws InvalidOptionError for a setting out of range; DatabaseError, SchemaMissingError
 */
export async function prune(sql: Sql, now: Date, settings: PruneSettings = {}): Promise<PruneReport> {
  const { eventDays = 7, attemptDays = 30, deadLetterDays = 30, chunk = 5_000, signal } = settings
  if (!Number.isInteger(chunk) || chunk < 1 || chunk > 100_000) {
    throw new InvalidOptionError(`Expected \`chunk\` to be 1–100000, got ${chunk}.`)
  }
  const eventCutoff = cutoffOf(now, 'eventDays', eventDays)
  const attemptCutoff = cutoffOf(now, 'attemptDays', attemptDays)
  const deadLetterCutoff = cutoffOf(now, 'deadLetterDays', deadLetterDays)
  try {
    // dead letters first: attempts and events may go with them; batches before events, which ask for the oldest left
    return {
      deadLetters: await repeat(signal, () => pruneDeadLetters(sql, deadLetterCutoff, chunk)),
      attempts: await repeat(signal, attemptChunks(sql, attemptCutoff, chunk)),
      batches: await repeat(signal, batchChunks(sql, eventCutoff, chunk)),
      events: await repeat(signal, eventChunks(sql, eventCutoff, chunk)),
      dedupeKeys: await repeat(signal, () => pruneDedupeKeys(sql, now, chunk)),
      wakeFailures: await repeat(signal, () => pruneWakeFailures(sql, attemptCutoff, chunk)),
      isComplete: signal?.aborted !== true,
    }
  } catch (error) {
    throw databaseError(error)
  }
}

function cutoffOf(now: Date, name: string, days: number): Date {
  const cutoff = new Date(now.getTime() - days * dayMs)
  if (days >= 0 && !Number.isNaN(cutoff.getTime())) return cutoff
  throw new InvalidOptionError(`Expected \`${name}\` to be a number of days, 0 or more, got ${days}.`)
}

async function repeat(signal: AbortSignal | undefined, step: () => Promise<Step>): Promise<number> {
  let removed = 0
  while (signal?.aborted !== true) {
    const result = await step()
    removed += result.removed
    if (result.isLast) break
  }
  return removed
}

async function pruneDeadLetters(sql: Sql, cutoff: Date, chunk: number): Promise<Step> {
  const [row] = await sql<{ removed: number }[]>`
    select loopless.prune_dead_letters(${cutoff}, ${chunk}) as removed`
  const removed = row?.removed ?? 0
  return { removed, isLast: removed < chunk }
}

async function pruneDedupeKeys(sql: Sql, now: Date, chunk: number): Promise<Step> {
  const [row] = await sql<{ removed: number }[]>`
    select loopless.prune_dedupe_keys(${now}, ${chunk}) as removed`
  const removed = row?.removed ?? 0
  return { removed, isLast: removed < chunk }
}

async function pruneWakeFailures(sql: Sql, cutoff: Date, chunk: number): Promise<Step> {
  const [row] = await sql<{ removed: number }[]>`
    select loopless.prune_wake_failures(${cutoff}, ${chunk}) as removed`
  const removed = row?.removed ?? 0
  return { removed, isLast: removed < chunk }
}

function attemptChunks(sql: Sql, cutoff: Date, chunk: number): () => Promise<Step> {
  // as text: a Date would lose the microseconds, and with them the place
  let place = { endedAt: '-infinity', id: '0' }
  return async () => {
    const [row] = await sql<{ removed: number; endedAt: string | null; id: string | null }[]>`
      select removed, last_ended_at::text as "endedAt", last_id as id
      from loopless.prune_attempts(${cutoff}, ${place.endedAt}::text::timestamptz, ${place.id}, ${chunk})`
    if (!row?.endedAt || row.id === null) return { removed: row?.removed ?? 0, isLast: true }
    place = { endedAt: row.endedAt, id: row.id }
    return { removed: row.removed, isLast: false }
  }
}

function eventChunks(sql: Sql, cutoff: Date, chunk: number): () => Promise<Step> {
  let place = { xid: '0', id: '0' }
  return async () => {
    const [row] = await sql<{ removed: number; xid: string | null; id: string | null }[]>`
      select removed, last_xid::text as xid, last_id as id
      from loopless.prune_events(${cutoff}, ${place.xid}::text::xid8, ${place.id}, ${chunk})`
    if (!row?.xid || row.id === null) return { removed: row?.removed ?? 0, isLast: true }
    place = { xid: row.xid, id: row.id }
    return { removed: row.removed, isLast: false }
  }
}

function batchChunks(sql: Sql, cutoff: Date, chunk: number): () => Promise<Step> {
  let place = '0'
  return async () => {
    const [row] = await sql<{ removed: number; id: string | null }[]>`
      select removed, last_id as id from loopless.prune_batches(${cutoff}, ${place}, ${chunk})`
    if (!row || row.id === null) return { removed: row?.removed ?? 0, isLast: true }
    place = row.id
    return { removed: row.removed, isLast: false }
  }
}
