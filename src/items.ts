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
  /** No handler sees this: what is settled does not depend on what they do. */
  readonly event: Pick<ReceivedEvent, 'id' | 'name'>
  readonly xid: string
  readonly delivery: ClaimedDelivery | null
  /** The event for one call of a handler, which may change it: no other call sees that. */
  receive(): ReceivedEvent
}

/** Events in columns; texts are separated by commas. */
export interface Columns {
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

/** The events of a row. */
export function toItems(columns: Columns): Item[] {
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
