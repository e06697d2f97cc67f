import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../src/index.ts'
import type { HandledLog, HandledRun } from './handled.ts'

/** For all probes. */
const probeTimeoutMs = 30_000

/** How soon events were handled. */
export interface Latency {
  /** Events that were measured. */
  readonly events: number
  /** Milliseconds until the first handler of the median event was called. */
  readonly p50: number
  /** The same for the slowest but one of a hundred. */
  readonly p99: number
  /** Since when: the commit, or the begin of the transaction where the server does not track commits. */
  readonly since: 'commit' | 'publish'
}

/** How soon events were handled while many were published, and while none were. */
export interface Latencies {
  readonly busy: Latency | null
  /** Null where publishing wakes nobody. */
  readonly idle: Latency | null
}

/**
 * Measures how long after their commits the first handlers of these events were called.
 *
 * @returns null when none was called
 */
export async function measureLatency(sql: Sql, runs: ReadonlyArray<HandledRun>): Promise<Latency | null> {
  const beganAtMs = new Map<string, number>()
  for (const { eventId, beganAtMs: began } of runs) {
    const first = beganAtMs.get(eventId)
    if (began !== null && (first === undefined || began < first)) beganAtMs.set(eventId, began)
  }
  const offsetMs = await clockOffset(sql)
  const rows = await sql<{ id: string; committedAtMs: number | null; publishedAtMs: number }[]>`
    select
      e.id,
      case when current_setting('track_commit_timestamp')::boolean
        then extract(epoch from pg_xact_commit_timestamp(e.xid::xid))::float8 * 1000
      end as "committedAtMs",
      extract(epoch from e.published_at)::float8 * 1000 as "publishedAtMs"
    from loopless.event e
    where e.id = any(${[...beganAtMs.keys()]}::text[]::bigint[])`
  if (rows.length === 0) return null
  const isTracked = rows.every(({ committedAtMs }) => committedAtMs !== null)
  const latencies = rows
    .map(({ id, committedAtMs, publishedAtMs }) => {
      const sinceMs = (isTracked ? committedAtMs : null) ?? publishedAtMs
      return Math.max(0, (beganAtMs.get(id) ?? 0) + offsetMs - sinceMs)
    })
    .sort((one, other) => one - other)
  const at = (share: number): number => latencies[Math.floor((latencies.length - 1) * share)] ?? 0
  return { events: rows.length, p50: at(0.5), p99: at(0.99), since: isTracked ? 'commit' : 'publish' }
}

/**
 * The same for single events that are published while no poller is awake.
 *
 * @param handled what handlers did; emptied
 */
export async function probeLatency(sql: Sql, handled: HandledLog, probes = 5): Promise<Latency | null> {
  const runs: HandledRun[] = []
  const signal = AbortSignal.timeout(probeTimeoutMs)
  for (let probe = 0; probe < probes && !signal.aborted; probe++) {
    while (!signal.aborted && (await isAwake(sql))) await sleep(20)
    const [row] = await sql<{ id: string }[]>`select loopless.publish('bus.probed', '{}')::text as id`
    const isProbe = ({ eventId }: HandledRun): boolean => eventId === row?.id
    let mine: HandledRun[] = []
    while (!signal.aborted && mine.length === 0) {
      await handled.some(signal)
      mine = handled.take().filter(isProbe)
    }
    runs.push(...mine)
  }
  return measureLatency(sql, runs)
}

async function isAwake(sql: Sql): Promise<boolean> {
  const [row] = await sql<{ awake: boolean }[]>`
    select last_value > extract(epoch from clock_timestamp()) * 1000 as awake from loopless.wake_mark`
  return row?.awake ?? false
}

/** What the database's clock is ahead of this machine's; 0 when it cannot be told from the way there and back. */
async function clockOffset(sql: Sql): Promise<number> {
  const beganMs = Date.now()
  const [row] = await sql<{ now: Date }[]>`select clock_timestamp() as now`
  const endedMs = Date.now()
  const offsetMs = (row?.now.getTime() ?? endedMs) - (beganMs + endedMs) / 2
  return Math.abs(offsetMs) <= endedMs - beganMs + 1 ? 0 : offsetMs
}
