import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import { type Columns, type Item, toItems } from './items.ts'
import { type ClaimLimits, leaseAndRead } from './lease.ts'
import { newToken } from './token.ts'

/** What a claim leased, all under one token. */
export interface Work {
  readonly token: string
  /** The batch to settle; null when only deliveries, or nothing, were claimed. */
  readonly batchId: string | null
  readonly items: ReadonlyArray<Item>
  /** Events freed from dead pollers by this claim. */
  readonly repaired: number
  /** Deliveries that must run alone are waiting: `claimAlone`. */
  readonly aloneWaiting: boolean
  /** The claim moved through the log without finding anything to run: claim again. */
  readonly advanced: boolean
  readonly nextDueAt: Date | null
}

/**
 * Leases the next events of the log and due deliveries, and reads them, in one round trip.
 * @throws HandlerSetError when other handlers are registered; DatabaseError, SchemaMissingError
 */
export async function claim(sql: Sql, limits: ClaimLimits): Promise<Work> {
  const token = newToken(sql)
  try {
    const { leased, items } = await leaseAndRead(sql, token, limits)
    // the lease was lost between the two, or its events were removed by hand
    const isGone = items.length === 0 && leased.events + leased.deliveries > 0
    if (isGone) await release(sql, token, limits.now)
    const advanced = isGone || (leased.advanced ?? false)
    return {
      token,
      batchId: advanced ? null : leased.batch_id,
      items,
      repaired: leased.repaired,
      aloneWaiting: leased.alone,
      advanced,
      nextDueAt: leased.next_due_at,
    }
  } catch (error) {
    await release(sql, token, limits.now)
    throw databaseError(error)
  }
}

/** Leases one delivery that runs alone; null when none is due. */
export async function claimAlone(sql: Sql, limits: ClaimLimits): Promise<Work | null> {
  const token = newToken(sql)
  try {
    const rows = await sql<Columns[]>`
      select ids, waiting, xids, published, names, headers, payloads, deliveries
      from loopless.claim_alone(${limits.now}, ${token}, ${limits.until}, ${limits.handlerSet})`
    const items = rows.flatMap(toItems)
    if (items.length === 0) return null
    return { token, batchId: null, items, repaired: 0, aloneWaiting: true, advanced: false, nextDueAt: null }
  } catch (error) {
    await release(sql, token, limits.now)
    throw databaseError(error)
  }
}

/** When there will be something to do if nothing is published; null when nothing waits. */
export async function nextDue(sql: Sql): Promise<Date | null> {
  try {
    const [row] = await sql<{ at: Date | null }[]>`select loopless.next_due() as at`
    return row?.at ?? null
  } catch (error) {
    throw databaseError(error)
  }
}

/**
 * Gives back, uncharged, what is still held under a token: after a fault, when nobody knows whether the statement was
 * carried out. Says nothing when the database cannot be reached; the lease ends by itself then.
 */
export async function release(sql: Sql, token: string, now: Date): Promise<void> {
  await sql`select loopless.release(${now}, ${token})`.catch(() => {})
}
