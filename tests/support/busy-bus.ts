import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type HandledMessage,
  type HandlerSet,
  LeaseLostError,
  LooplessError,
  type OutgoingEvent,
  poll,
  publishMany,
  type Sql,
  type TransactionSql,
} from '../../src/index.ts'
import type { Random } from './random.ts'

export interface BusyBusOptions {
  /** Opens a client of one connection; called once for each publisher and poller. */
  connect(): Sql
  readonly random: Random
  readonly handlers: HandlerSet
  readonly event: () => OutgoingEvent
  readonly publishers: number
  readonly pollers: number
  /** A claim takes 1 to that many events. Default 200. */
  readonly mostEvents?: number
  /** Transactions stay open for at most that long. Default 1,000 ms. */
  readonly longestMs?: number
  /** Whether publishers also commit in two phases. Default false. */
  readonly twoPhase?: boolean
  /** Where the pollers' clock begins. Default: now. */
  readonly startAt?: Date
  /** The share of polls in which a handler that calls `stall` sleeps past the lease. Default 0. */
  readonly stallShare?: number
  /** The server may go away at any time: its errors are counted instead of thrown. Default false. */
  readonly survive?: boolean
}

/** What went on; `stop` completes it. */
export interface BusyBus {
  /** Events whose commit was confirmed. */
  readonly committed: ReadonlySet<string>
  /** For each event and handler, `id:handler`, how often it was settled as succeeded, as far as a poller heard. */
  readonly settled: ReadonlyMap<string, number>
  readonly counts: {
    polls: number
    transactions: number
    leasesLost: number
    pollFaults: number
    publishFaults: number
  }
  /** The pollers' clock: it runs so fast that a lease of 30 s ends after 1.5. */
  clock(): Date
  /** Ends the publishers, and the pollers once nothing is left to do. */
  stop(): Promise<void>
  /** Ends both at once, whatever is left. */
  abandon(): Promise<void>
}

const clockSpeed = 20
/** A lease of 30 s on the pollers' clock. */
const leaseSeconds = { seconds: 20, leaseMarginSeconds: 10 }

/** Polls that shall stall, by the Date that each calls now. */
const stalling = new WeakSet<Date>()

/** For handlers: sleeps past the lease, once in each poll that was chosen for it. */
export async function stall(now: Date): Promise<void> {
  if (stalling.delete(now)) await sleep(1_700)
}

/**
 * Publishers whose transactions are long, late (their id is older than their events), rolled back in whole or in part,
 * and pollers beside them.
 */
export function startBusyBus(options: BusyBusOptions): BusyBus {
  const { random, handlers, survive = false, longestMs = 1_000, stallShare = 0, mostEvents = 200 } = options
  const startedMs = Date.now()
  const clockStartMs = options.startAt?.getTime() ?? startedMs
  const clock = (): Date => new Date(clockStartMs + (Date.now() - startedMs) * clockSpeed)
  const committed = new Set<string>()
  const settled = new Map<string, number>()
  const counts = { polls: 0, transactions: 0, leasesLost: 0, pollFaults: 0, publishFaults: 0 }
  let isPublishing = true
  let isPolling = true
  let isAbandoned = false

  const onHandled = (message: unknown): void => {
    const { eventId, handler, outcome } = message as HandledMessage
    if (outcome !== 'succeeded') return
    const key = `${eventId}:${handler}`
    settled.set(key, (settled.get(key) ?? 0) + 1)
  }
  subscribe('loopless:handled', onHandled)

  const publish = (tx: TransactionSql, count: number): Promise<string[]> =>
    publishMany(tx, Array.from({ length: count }, options.event))
  const pause = (most: number): Promise<void> => sleep(random.next() * most)

  async function fill(tx: TransactionSql): Promise<string[]> {
    if (random.chance(0.05)) {
      await tx`select pg_current_xact_id()`
      await pause(longestMs)
    }
    const ids = await publish(tx, random.chance(0.02) ? 4 * mostEvents : random.whole(1, 20))
    if (random.chance(0.1)) await pause(longestMs)
    if (random.chance(0.3)) {
      const lost = tx.savepoint(async (inner) => {
        await publish(inner, 2)
        throw new RollBack()
      })
      await lost.catch(ignoreRollBack)
    }
    if (random.chance(0.2)) ids.push(...(await publish(tx, 1)))
    if (random.chance(0.1)) throw new RollBack()
    return ids
  }

  async function publishOnce(sql: Sql, name: string): Promise<void> {
    let ids: string[] = []
    const isPrepared = options.twoPhase === true && random.chance(0.05)
    await sql.begin(async (tx) => {
      ids = await fill(tx)
      if (isPrepared) await tx.prepare(name)
    })
    if (isPrepared) {
      await pause(longestMs)
      await sql.unsafe(`commit prepared '${name}'`)
    }
    for (const id of ids) committed.add(id)
    counts.transactions++
  }

  async function publisher(index: number): Promise<void> {
    const sql = options.connect()
    for (let turn = 0; isPublishing; turn++) {
      try {
        await publishOnce(sql, `publisher_${index}_${turn}`)
      } catch (error) {
        if (!(error instanceof RollBack)) {
          if (!survive) throw error
          counts.publishFaults++
        }
      }
      await pause(20)
    }
    await sql.end({ timeout: 1 })
  }

  async function pollOnce(sql: Sql): Promise<boolean> {
    try {
      const now = clock()
      const isStalling = random.chance(stallShare)
      if (isStalling) stalling.add(now)
      // what a stalled poll held is run again one by one: few
      const events = random.whole(1, isStalling ? 20 : mostEvents)
      const report = await poll(now, { sql, handlers, limits: { events, ...leaseSeconds }, log: () => {} })
      counts.polls++
      if (report.claimed === 0) await pause(10)
      return report.claimed === 0 && report.nextDueAt === null
    } catch (error) {
      if (error instanceof LeaseLostError)
        counts.leasesLost++ // by a stall
      else if (survive && error instanceof LooplessError) counts.pollFaults++
      else throw error
      return false
    }
  }

  async function poller(): Promise<void> {
    const sql = options.connect()
    for (;;) {
      const mayEnd = !isPolling
      const isQuiet = await pollOnce(sql)
      if (isAbandoned || (mayEnd && isQuiet)) break
    }
    await sql.end({ timeout: 1 })
  }

  const publishing = Promise.all(Array.from({ length: options.publishers }, (_, index) => publisher(index)))
  const polling = Promise.all(Array.from({ length: options.pollers }, poller))
  const end = async (): Promise<void> => {
    isPublishing = false
    try {
      await publishing
      isPolling = false
      await polling
    } finally {
      isAbandoned = true
      unsubscribe('loopless:handled', onHandled)
    }
  }
  // a failure is reported by `stop`; until then nobody listens
  for (const work of [publishing, polling]) work.catch(() => {})
  return {
    committed,
    settled,
    counts,
    clock,
    stop: end,
    abandon: () => {
      isAbandoned = true
      return end()
    },
  }
}

class RollBack extends Error {}

function ignoreRollBack(error: unknown): void {
  if (!(error instanceof RollBack)) throw error
}
