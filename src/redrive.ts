import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'

/**
 * Takes dead letters back: each becomes a delivery that is due now, for the handler that gave up, its attempts at 0.
 * The attempts recorded so far are kept.
 * @param ids of dead letters, not of events; undefined: all of them. Ids that are not there are passed over.
 * @returns how many were taken back
 * @throws DatabaseError, SchemaMissingError
 */
export async function redrive(sql: Sql, now: Date, ids?: ReadonlyArray<string>): Promise<number> {
  try {
    const [row] = await sql<{ redriven: number }[]>`
      select loopless.redrive(${now}, ${ids === undefined ? null : [...ids]}::text[]::bigint[]) as redriven`
    return row?.redriven ?? 0
  } catch (error) {
    throw databaseError(error)
  }
}
