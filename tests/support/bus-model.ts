import type { HandledMessage } from '../../src/index.ts'

/** What a handler does at an attempt. */
export type Conduct = 'succeed' | 'fail' | 'discard'

/** How one handler stands with one event. */
interface Standing {
  readonly eventId: string
  readonly handler: string
  readonly conducts: ReadonlyArray<Conduct>
  state: 'waiting' | 'done' | 'dead'
  /** Since it was published or redriven. */
  charged: number
  /** Not before. */
  dueAt: number
  /** The error classes of all its attempts. */
  readonly attempts: string[]
  /** A poller died while it ran this alone, and nobody has found out yet. */
  undoDeath: (() => void) | null
}

/** What a dropped claim held. */
export interface DroppedItem {
  readonly eventId: string
  readonly handler: string | null
  readonly attempt: number
  readonly alone: boolean
  readonly died: boolean
}

/** How many attempts the handlers of the model have, and how long they wait after one. */
export const maxAttempts = 3
export const retryDelayMs = (attempt: number): number => 60_000 * 2 ** (attempt - 1)

/**
 * What a bus may do with its events, and what it must have done in the end: a map of event and handler instead of
 * windows, batches and deliveries. Every method throws when the real bus did something else.
 */
export class BusModel {
  readonly #standings = new Map<string, Standing>()
  /** Effects of transactional handlers, `event:handler`. */
  readonly effects: string[] = []

  /** An event was committed; `conducts` by handler. */
  publish(eventId: string, dueAt: number, conducts: Readonly<Record<string, ReadonlyArray<Conduct>>>): void {
    for (const [handler, list] of Object.entries(conducts)) {
      const standing: Standing = {
        eventId,
        handler,
        conducts: list,
        state: 'waiting',
        charged: 0,
        dueAt,
        attempts: [],
        undoDeath: null,
      }
      this.#standings.set(`${eventId}:${handler}`, standing)
    }
  }

  /** A poll at `now` settled a run. */
  handled(
    { eventId, handler, attempt, outcome }: HandledMessage,
    now: number,
    isTransactional: boolean,
  ): void {
    const standing = this.#waiting(eventId, handler, now)
    standing.undoDeath = null // found out and charged, or it could not have run
    expectSame(`attempt of ${eventId}:${handler}`, attempt, standing.charged + 1)
    const conduct = standing.conducts[attempt - 1] ?? 'succeed'
    expectSame(`outcome of ${eventId}:${handler}`, outcome, conduct === 'succeed' ? 'succeeded' : 'failed')
    if (conduct !== 'succeed') {
      charge(standing, conduct === 'discard' ? 'DiscardRequest' : 'Error', now)
      if (conduct === 'discard') standing.state = 'dead'
      return
    }
    standing.state = 'done'
    if (isTransactional) this.effects.push(`${eventId}:${handler}`)
  }

  /** A poller claimed this at `now` and was never heard of again. */
  drop(item: DroppedItem, now: number, until: number): void {
    const standings = this.#standingsOf(item)
    for (const { eventId, handler } of standings) this.#waiting(eventId, handler, now, item.died)
    for (const standing of standings) {
      if (!item.died) standing.undoDeath = null // an earlier death was found out
      const charged = standing.charged - (standing.undoDeath ? 1 : 0)
      expectSame(`attempts before ${standing.eventId}:${standing.handler}`, item.attempt, charged)
      if (item.alone && !item.died && standings.length === 1) chargeDeath(standing, until)
      else standing.dueAt = Math.max(standing.dueAt, until)
    }
  }

  /** The poller that seemed to have died while it ran this alone is there after all, and about to settle. */
  undrop(eventId: string, handler: string): void {
    const standing = this.#standings.get(`${eventId}:${handler}`)
    standing?.undoDeath?.()
    if (standing) standing.undoDeath = null
  }

  /** The poller of a dropped claim came back and could still settle it as succeeded. */
  settleDropped(item: DroppedItem): void {
    for (const standing of this.#standingsOf(item)) {
      this.undrop(standing.eventId, standing.handler)
      expectSame(`state of ${standing.eventId}:${standing.handler}`, standing.state, 'waiting')
      standing.state = 'done'
    }
  }

  /** A dead letter was taken back. */
  redrive(eventId: string, handler: string, now: number): void {
    const standing = this.#standings.get(`${eventId}:${handler}`)
    expectSame(`state of ${eventId}:${handler}`, standing?.state, 'dead')
    if (standing) Object.assign(standing, { state: 'waiting', charged: 0, dueAt: now, undoDeath: null })
  }

  /** What there is to find once nothing waits: `event:handler` with the errors of its attempts, in order. */
  end(): { waiting: string[]; dead: string[]; attempts: string[]; effects: string[] } {
    const all = [...this.#standings.values()]
    const keyOf = ({ eventId, handler }: Standing): string => `${eventId}:${handler}`
    return {
      waiting: all
        .filter(({ state }) => state === 'waiting')
        .map(keyOf)
        .sort(),
      dead: all
        .filter(({ state }) => state === 'dead')
        .map((one) => `${keyOf(one)} ${one.charged}`)
        .sort(),
      attempts: all
        .filter((one) => one.attempts.length > 0)
        .map((one) => `${keyOf(one)} ${one.attempts.join()}`)
        .sort(),
      effects: this.effects.toSorted(),
    }
  }

  /** A row without a handler stands for every handler of its event. */
  #standingsOf({ eventId, handler }: DroppedItem): Standing[] {
    return [...this.#standings.values()].filter(
      (standing) => standing.eventId === eventId && (handler === null || standing.handler === handler),
    )
  }

  #waiting(eventId: string, handler: string, now: number, mayHaveDied = false): Standing {
    const standing = this.#standings.get(`${eventId}:${handler}`)
    if (!standing) throw new Error(`${eventId}:${handler} was never committed.`)
    if (mayHaveDied && standing.undoDeath) return standing
    expectSame(`state of ${eventId}:${handler}`, standing.state, 'waiting')
    if (now < standing.dueAt)
      throw new Error(`${eventId}:${handler} came ${standing.dueAt - now} ms too early.`)
    return standing
  }
}

function charge(standing: Standing, errorClass: string, now: number): void {
  standing.charged++
  standing.attempts.push(errorClass)
  standing.dueAt = now + retryDelayMs(standing.charged)
  if (standing.charged >= maxAttempts) standing.state = 'dead'
}

function chargeDeath(standing: Standing, until: number): void {
  const { state, charged, dueAt } = standing
  charge(standing, 'PollerDiedError', until)
  standing.undoDeath = () => {
    Object.assign(standing, { state, charged, dueAt })
    standing.attempts.pop()
  }
}

function expectSame(what: string, got: unknown, expected: unknown): void {
  if (got !== expected) throw new Error(`Expected the ${what} to be ${String(expected)}, got ${String(got)}.`)
}
