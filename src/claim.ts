import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import type { ReceivedEvent } from './event.ts'
import { newToken } from './token.ts'

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
  /** No handler sees this: what is settled does not depend on what they do. */
  readonly event: Pick<ReceivedEvent, 'id' | 'name'>
  readonly xid: string
  readonly delivery: ClaimedDelivery | null
  /** The event for one call of a handler, which may change it: no other call sees that. */
  receive(): ReceivedEvent
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

/** Events in columns; texts are separated by commas. */
interface Columns {
  /** Null: no events. */
  readonly ids: string | null
  /** Ids of events among them that wait as deliveries; null: none. */
  readonly waiting: string | null
  /** One for all when all have the same. */
  readonly xids: string
  /** Milliseconds since 1970; one for all when all have the same. */
  readonly published: string
  readonly names: string
  /** By event id; null: no event has any. */
  readonly headers: Readonly<Record<string, Readonly<Record<string, string>>>> | null
  readonly payloads: string
  readonly deliveries: ReadonlyArray<ClaimedDelivery> | null
}

interface Claimed extends Columns {
  readonly batch_id: string | null
  readonly advanced: boolean | null
  readonly repaired: number
  readonly alone: boolean
  readonly next_due_at: Date | null
}

/**
 * Leases the next events of the log and due deliveries, in one round trip.
 * @throws HandlerSetError when other handlers are registered; DatabaseError, SchemaMissingError
 */
export async function claim(sql: Sql, limits: ClaimLimits): Promise<Work> {
  const token = newToken(sql)
  try {
    const rows = await sql<Claimed[]>`
      select
        batch_id, advanced, repaired, alone, next_due_at,
        ids, waiting, xids, published, names, headers, payloads, deliveries
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

function toWork(token: string, rows: ReadonlyArray<Claimed>): Work {
  const [claimed] = rows
  if (claimed === undefined) {
    throw new Error('loopless.claim returned nothing: the schema and the code do not belong together.')
  }
  const advanced = claimed.advanced ?? false
  return {
    token,
    batchId: advanced ? null : claimed.batch_id,
    items: rows.flatMap(toItems),
    repaired: claimed.repaired,
    aloneWaiting: claimed.alone,
    advanced,
    nextDueAt: claimed.next_due_at,
  }
}

function toItems(columns: Columns): Item[] {
  if (columns.ids === null) return []
  const { headers, deliveries } = columns
  const xids = columns.xids.split(',')
  const times = columns.published.split(',')
  const names = columns.names.split(',')
  const payloads = new Payloads(columns.payloads)
  const items = columns.ids.split(',').map((id, index): Item => {
    const event = { id, name: names[index] as string }
    const publishedAt = Number(times[index] ?? times[0])
    let received = 0
    return {
      event,
      xid: (xids[index] ?? xids[0]) as string,
      delivery: deliveries?.[index] ?? null,
      receive: () => ({
        id,
        name: event.name,
        payload: payloads.take(index, received++),
        publishedAt: new Date(publishedAt),
        headers: { ...headers?.[id] },
      }),
    }
  })
  if (columns.waiting === null) return items
  const waiting = new Set(columns.waiting.split(','))
  return items.filter((item) => !waiting.has(item.event.id))
}

/** Payloads of a claim, parsed all at once: several times as fast as one by one. */
class Payloads {
  readonly #text: string
  /** Parsed again for the second call that gets a payload, and so on; what was taken is let go. */
  readonly #parsed: unknown[][] = []

  constructor(text: string) {
    this.#text = `[${text}]`
  }

  take(index: number, call: number): unknown {
    this.#parsed[call] ??= JSON.parse(this.#text) as unknown[]
    const payload = this.#parsed[call][index]
    this.#parsed[call][index] = undefined
    return payload
  }
}
