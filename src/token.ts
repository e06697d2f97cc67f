import { randomUUID } from 'node:crypto'
import type { Sql } from './db/client.ts'

/** What the tokens of one poller begin with, by its client; the rest is random. */
const pollers = new WeakMap<Sql, string>()
const sharedLength = 'xxxxxxxx-xxxx-4xxx'.length

/** What the tokens of a client's leases begin with, 18 characters: by that pollers are told apart. */
export function pollerOf(sql: Sql): string {
  const known = pollers.get(sql)
  if (known !== undefined) return known
  const made = randomUUID().slice(0, sharedLength)
  pollers.set(sql, made)
  return made
}

/** A token for the next lease of a client: a random UUID whose begin is the client's. */
export function newToken(sql: Sql): string {
  return pollerOf(sql) + randomUUID().slice(sharedLength)
}
