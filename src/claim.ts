import { randomUUID } from 'node:crypto'
import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import type { ReceivedEvent } from './event.ts'

/** An exception's row, leased by this poll. */
export interface ClaimedDelivery {
  readonly id: string
  /** Null: every handler that matches. */
  readonly handler: string | null
  /** Attempts charged before this run. */
  readonly attempt: number
  /** Runs with nothing beside it, because a poller died while it ran among others. */
  readonly alone: boolean
  /** Its poller died while it ran alone: to be charged, not run. */
  readonly died: boolean
}

/** One event of a claim; from the log when it has no delivery. */
export interface Item {
  readonly event: ReceivedEvent
  readonly xid: string
  readonly delivery: ClaimedDelivery | null
}

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

interface Summary {
  readonly batchId: string | null
  readonly batchSettled: boolean
  readonly repaired: number
  readonly alone: boolean
  readonly nextDueAt: string | null
}

interface ClaimedRow {
  readonly summary: Summary | null
  readonly delivery: ClaimedDelivery | null
  readonly id: string
  readonly xid: string
  readonly name: string
  readonly payload: unknown
  readonly headers: Readonly<Record<string, string>> | null
  readonly published_at: Date
}

const noHeaders: Readonly<Record<string, string>> = Object.freeze({})

/**
 * Leases the next events of the log and due deliveries, in one round trip.
 * @throws HandlerSetError when other handlers are registered; DatabaseError, SchemaMissingError
 */
export async function claim(sql: Sql, limits: ClaimLimits): Promise<Work> {
  const token = randomUUID()
  try {
    const rows = await sql<ClaimedRow[]>`
      select summary, delivery, id, xid, name, payload, headers, published_at
      from loopless.claim(
        ${limits.now}, ${token}, ${limits.until},
        ${limits.events}, ${limits.bytes}, ${limits.deliveries}, ${limits.handlerSet})`
    return toWork(token, rows)
  } catch (error) {
    await release(sql, token, limits.now)
    throw databaseError(error)
  }
}

/** Leases one delivery that runs alone; null when none is due. */
export async function claimAlone(sql: Sql, limits: ClaimLimits): Promise<Work | null> {
  const token = randomUUID()
  try {
    const rows = await sql<ClaimedRow[]>`
      select summary, delivery, id, xid, name, payload, headers, published_at
      from loopless.claim_alone(${limits.now}, ${token}, ${limits.until}, ${limits.handlerSet})`
    return rows[0]
      ? {
          token,
          batchId: null,
          items: [toItem(rows[0])],
          repaired: 0,
          aloneWaiting: true,
          advanced: false,
          nextDueAt: null,
        }
      : null
  } catch (error) {
    await release(sql, token, limits.now)
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

function toWork(token: string, rows: ReadonlyArray<ClaimedRow>): Work {
  const summary = rows[0]?.summary
  if (!summary)
    throw new Error('loopless.claim returned no summary: the schema and the code do not belong together.')
  const items: Item[] = []
  for (let index = 1; index < rows.length; index++) {
    const row = rows[index]
    if (row) items.push(toItem(row))
  }
  return {
    token,
    batchId: summary.batchSettled ? null : summary.batchId,
    items,
    repaired: summary.repaired,
    aloneWaiting: summary.alone,
    advanced: summary.batchSettled,
    nextDueAt: summary.nextDueAt === null ? null : new Date(summary.nextDueAt),
  }
}

function toItem(row: ClaimedRow): Item {
  const event = {
    id: row.id,
    name: row.name,
    payload: row.payload,
    publishedAt: row.published_at,
    headers: row.headers ?? noHeaders,
  }
  return { event, xid: row.xid, delivery: row.delivery }
}
