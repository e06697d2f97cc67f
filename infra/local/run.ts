import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../src/index.ts'
import type { Offline } from './offline.ts'
import { type Progress, readProgress } from './progress.ts'
import { keepLive, paint, print, showLive } from './screen.ts'
import { postWebhooks, type Webhook } from './webhooks.ts'

const pollFunction = 'loopless-local-poll'
const showEveryMs = 100
/** How often a row is written where nothing can be replaced. */
const printEveryMs = 1_000
const settleTimeoutMs = 45_000

/** What became of the webhooks. */
export interface RunResult extends Progress {
  readonly ids: ReadonlyArray<string>
  readonly seconds: number
}

/** Posts the webhooks and has them handled, showing how far it is; ends when all are settled, or time is up. */
export async function runWebhooks(
  sql: Sql,
  offline: Offline,
  webhooks: ReadonlyArray<Webhook>,
): Promise<RunResult> {
  const ids: string[] = []
  const beganMs = performance.now()
  const secondsSince = (): number => (performance.now() - beganMs) / 1000
  // The rate is that of the busy time: then come pauses before retries.
  let busySeconds = Number.POSITIVE_INFINITY
  const poller = pollerOf(offline)
  const display = startDisplay(sql, ids, () => Math.min(secondsSince(), busySeconds))
  try {
    await postWebhooks(`${offline.url}/webhooks/github`, webhooks, (id) => {
      ids.push(id)
      poller.wake()
    })
    for (;;) {
      await poller.idle()
      busySeconds = Math.min(busySeconds, secondsSince())
      const progress = await readProgress(sql, ids)
      if (progress.waiting === 0 || secondsSince() * 1000 > settleTimeoutMs) {
        const seconds = secondsSince()
        await display.finish()
        return { ...progress, ids, seconds }
      }
      await sleep(Math.min(Math.max(progress.dueInMs ?? 0, 20), 1_000))
      poller.wake()
    }
  } finally {
    display.stop()
  }
}

interface Poller {
  /** Has the poll function invoked, now or once more after the invocation under way. */
  wake(): void
  /** @throws what an invocation threw */
  idle(): Promise<void>
}

/** What the database will do itself: invoke the poll function when something was published, one at a time. */
function pollerOf(offline: Offline): Poller {
  let isAwaited = false
  let running: Promise<void> | undefined
  let failure: unknown
  const run = async (): Promise<void> => {
    while (isAwaited) {
      isAwaited = false
      const report = (await offline.invoke(pollFunction)) as { refused?: string }
      if (report.refused) throw new Error(`The poll function claimed nothing: ${report.refused}`)
    }
  }
  return {
    wake() {
      isAwaited = true
      running ??= run()
        .catch((error: unknown) => {
          failure = error
        })
        .finally(() => {
          running = undefined
        })
    },
    async idle() {
      while (running !== undefined) await running
      if (failure !== undefined) throw failure
    },
  }
}

interface Display {
  finish(): Promise<void>
  stop(): void
}

/** Keeps a row of numbers up to date; where the output is no terminal, writes a row each second. */
function startDisplay(sql: Sql, ids: ReadonlyArray<string>, busySeconds: () => number): Display {
  const columns = ['published', 'handled', 'retried', 'dead', 'events/s']
  print(paint('dim', columns.map((column) => column.padStart(11)).join('')))
  let printed = ''
  const row = (published: number, { handled, retried, dead }: Progress): string => {
    const rate = Math.round(handled / Math.max(busySeconds(), 0.001))
    return [published, handled, retried, dead, rate].map((value) => String(value).padStart(11)).join('')
  }
  const show = async (): Promise<void> => {
    const published = ids.length
    const text = row(published, await readProgress(sql, ids))
    if (process.stdout.isTTY) showLive(text)
    else if (text !== printed && published > 0) print(text)
    printed = text
  }
  const stopping = new AbortController()
  const { signal } = stopping
  const running = (async () => {
    while (!signal.aborted) {
      await show()
      await sleep(process.stdout.isTTY ? showEveryMs : printEveryMs, undefined, { signal })
    }
  })().catch(() => {}) // stopped, or the database failed: the run itself will say so
  return {
    async finish() {
      stopping.abort()
      await running
      await show()
      keepLive()
    },
    stop() {
      stopping.abort()
      keepLive()
    },
  }
}
