import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'

/**
 * What a poller may do that found nothing. `idle`: it ends, and the next publish invokes another. `awaited`: a publisher
 * is in flight that may rely on it. `found`: there is something to claim.
 */
export type IdleAnswer = 'idle' | 'awaited' | 'found'

/**
 * A poller's part of the handshake, in one round trip: goes idle only while no publisher is in flight, after a last look.
 * @param isPatient false: goes idle in any case; what is in flight is left to the next wake or the schedule
 * @throws DatabaseError, SchemaMissingError
 */
export async function goIdle(sql: Sql, now: Date, isPatient: boolean): Promise<IdleAnswer> {
  try {
    const [row] = await sql<{ answer: IdleAnswer }[]>`
      select loopless.go_idle(${now}, ${isPatient}) as answer`
    return row?.answer ?? 'found'
  } catch (error) {
    throw databaseError(error)
  }
}

/**
 * Tells publishers that they need not invoke anybody for so long, because a poller is awake or on its way. 0 ms: nobody is.
 * @throws DatabaseError, SchemaMissingError
 */
export async function markAwake(sql: Sql, ms: number): Promise<void> {
  try {
    await sql`select loopless.mark_awake(${ms})`
  } catch (error) {
    throw databaseError(error)
  }
}

/**
 * Events that wait to be claimed, counted up to `most`; deliveries are not among them.
 * @throws DatabaseError, SchemaMissingError
 */
export async function countBacklog(sql: Sql, most: number): Promise<number> {
  try {
    const [row] = await sql<{ events: number }[]>`select loopless.backlog(${most}) as events`
    return row?.events ?? 0
  } catch (error) {
    throw databaseError(error)
  }
}
