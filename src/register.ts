import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import { checkHandlerSet, type HandlerSet } from './handler-set.ts'

/**
 * Makes a deployment's handlers the registered set, before its publishers and pollers run: from then on a poller
 * with another set claims nothing, so no event is claimed by a poller that does not know its handlers. Waits for
 * claims under way. Registering the same set again changes only the time.
 * @throws InvalidOptionError, DatabaseError, SchemaMissingError
 */
export async function register(sql: Sql, set: HandlerSet, now: Date): Promise<void> {
  checkHandlerSet(set)
  const { handlers, hash } = set
  const names = handlers.map((handler) => handler.name)
  const patterns = handlers.map((handler) => handler.pattern)
  try {
    await sql`select loopless.register(${now}, ${hash}, ${names}::text[], ${patterns}::text[])`
  } catch (error) {
    throw databaseError(error)
  }
}
