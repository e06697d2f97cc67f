import { isPipelined, type Sql } from './db/client.ts'
import { type Columns, type Item, toItems } from './items.ts'

/** What bounds a claim. */
export interface ClaimLimits {
  readonly now: Date
  /** End of the lease. */
  readonly until: Date
  /** Events from the log, at most. */
  readonly events: number
  /** Bytes of payload text from the log, at most, and their share of it for deliveries; one event of each is always taken. */
  readonly bytes: number
  /** Due deliveries beside new events, at most. */
  readonly deliveries: number
  /** Hash of this poller's handlers. */
  readonly handlerSet: string
}

/** What the claim found, and how much it leased. */
export interface Leased {
  readonly batch_id: string | null
  readonly events: number
  readonly deliveries: number
  readonly advanced: boolean | null
  readonly repaired: number
  readonly alone: boolean
  readonly next_due_at: Date | null
}

/**
 * Leases, and reads what was leased: two statements, so that no lock is held while events are on their way; the second is
 * sent with the first where it arrives behind it.
 */
export async function leaseAndRead(
  sql: Sql,
  token: string,
  limits: ClaimLimits,
): Promise<{ leased: Leased; items: Item[] }> {
  const leasing = sql<Leased[]>`
    select batch_id, events, deliveries, advanced, repaired, alone, next_due_at
    from loopless.lease(
      ${limits.now}, ${token}, ${limits.until},
      ${limits.events}, ${limits.bytes}, ${limits.deliveries}, ${limits.handlerSet})`.execute()
  const read = () =>
    sql<Columns[]>`
    select ids, waiting, xids, published, names, headers, payloads, deliveries
    from loopless.read_leased(${token}, ${limits.until})`.execute()
  const reading = isPipelined(sql) ? read() : null
  reading?.catch(() => {}) // looked at below
  const [leased] = await leasing
  if (leased === undefined) {
    throw new Error('loopless.lease returned nothing: the schema and the code do not belong together.')
  }
  const isEmpty = leased.events + leased.deliveries === 0
  const rows = reading === null && isEmpty ? [] : await (reading ?? read())
  return { leased, items: rows.flatMap(toItems) }
}
