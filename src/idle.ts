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

/** Keys of advisory locks: ('LOOP', 4) of the handshake, ('LOOP', 5) of those who ask at its end whether somebody is awake. */
const handshakeKey = [1280262992, 4] as const
const askingKey = [1280262992, 5] as const

/**
 * For a poller that leaves something to others and on which no publisher relies: asks as a publisher does whether
 * somebody is awake. One who goes idle just then either finds what was left, or has gone first; and of several that ask
 * at once, one is told so.
 * @returns true when nobody is: then publishers rely for 5 s on the poller that the caller is to invoke
 * @throws DatabaseError, SchemaMissingError
 */
export async function beginWaking(sql: Sql): Promise<boolean> {
  try {
    return await sql.begin(async (tx) => {
      await tx`select pg_advisory_xact_lock(${askingKey[0]}, ${askingKey[1]})`
      await tx`select pg_advisory_xact_lock_shared(${handshakeKey[0]}, ${handshakeKey[1]})`
      const [row] = await tx<{ begun: boolean }[]>`select loopless.begin_waking() as begun`
      return row?.begun ?? false
    })
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
