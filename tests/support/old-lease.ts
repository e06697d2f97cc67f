// What src/lease.ts was before leasing and reading were two statements: how a poller of an earlier version claims.

import type { Sql } from '../../src/db/client.ts'
import { type Columns, type Item, toItems } from '../../src/items.ts'
import type { ClaimLimits, Leased } from '../../src/lease.ts'

/** Leases and reads by one statement. */
export async function leaseAndRead(
  sql: Sql,
  token: string,
  limits: ClaimLimits,
): Promise<{ leased: Leased; items: Item[] }> {
  const rows = await sql<(Columns & Omit<Leased, 'events' | 'deliveries'>)[]>`
    select
      batch_id, advanced, repaired, alone, next_due_at,
      ids, waiting, xids, published, names, headers, payloads, deliveries
    from loopless.claim(
      ${limits.now}, ${token}, ${limits.until},
      ${limits.events}, ${limits.bytes}, ${limits.deliveries}, ${limits.handlerSet})`
  const [claimed] = rows
  if (claimed === undefined) throw new Error('loopless.claim returned nothing.')
  const items = rows.flatMap(toItems)
  const deliveries = items.filter(({ delivery }) => delivery !== null).length
  return { leased: { ...claimed, events: items.length - deliveries, deliveries }, items }
}
