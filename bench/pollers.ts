import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { connect } from '../src/index.ts'
import { rateOf } from './figure.ts'
import { fillLog } from './log.ts'
import type { Way } from './ways.ts'

/** What a poller process drains, and with which handler. */
export type PollerKind = 'idle' | 'inserting' | 'raw idle' | 'raw inserting'

/** Starts a process that drains when told to (poller.ts), and waits until it has connected. */
async function startPoller(url: string, kind: PollerKind): Promise<ChildProcess> {
  const poller = fork(new URL('poller.ts', import.meta.url), [url, kind])
  await once(poller, 'message')
  return poller
}

/** Has pollers drain at the same time, each until nothing is left. @returns how many events it were */
async function drainTogether(pollers: ReadonlyArray<ChildProcess>): Promise<number> {
  const drained = await Promise.all(pollers.map(drainIn))
  return drained.reduce((sum, one) => sum + one, 0)
}

async function drainIn(poller: ChildProcess): Promise<number> {
  poller.send('drain')
  const [drained] = await once(poller, 'message')
  return Number(drained)
}

export interface PollersOptions {
  /** The database, as the log is filled. */
  readonly url: string
  /** As pollers connect to it. */
  readonly pollersUrl: string
  readonly kind: PollerKind
  /** Events in the log. */
  readonly count: number
  /** Drains that do not count, by all pollers: those that drained less would run code that is optimized less. */
  readonly warmUps: number
}

/** Pollers that are started together: by each of the numbers. */
export async function openPollers(
  numbers: ReadonlyArray<number>,
  { url, pollersUrl, kind, count, warmUps }: PollersOptions,
): Promise<Way> {
  const sql = connect(url, { statementTimeoutMs: 0 })
  const most = Math.max(...numbers)
  const pollers = await Promise.all(Array.from({ length: most }, () => startPoller(pollersUrl, kind)))
  let turn = 0
  const drainWith = async (number: number): Promise<number> => {
    const chosen = [...pollers.slice(turn), ...pollers].slice(0, number) // each as often: a process runs faster the more it has drained
    turn = (turn + number) % most
    await sql`truncate public.effect`
    await fillLog(sql, kind.startsWith('raw') ? 'raw_loop.event' : 'loopless.event', count)
    return rateOf(() => drainTogether(chosen))
  }
  for (let round = 0; round < warmUps; round++) await drainWith(most)
  return {
    numbers,
    drain: drainWith,
    async close() {
      for (const poller of pollers) poller.disconnect()
      await sql.end()
    },
  }
}
