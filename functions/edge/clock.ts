import type { Sql } from '../../src/index.ts'
import { reconnecting } from './reconnecting.ts'

/**
 * Reads the database's clock once, and counts on from there: every poller decides by the same clock, however wrong
 * its own machine's is.
 */
export async function databaseClock(sql: Sql): Promise<() => Date> {
  const [row] = await reconnecting(() => sql<{ now: Date }[]>`select clock_timestamp() as now`)
  if (row === undefined) throw new Error('Expected the database to tell its time, got no row.')
  const offsetMs = row.now.getTime() - performance.now()
  return () => new Date(offsetMs + performance.now())
}
