import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../src/index.ts'
import { type Progress, readProgress } from './progress.ts'
import { keepLive, paint, print, showLive } from './screen.ts'
import { postWebhooks, type Webhook } from './webhooks.ts'

const lookEveryMs = 50
/** What is due later than that is the end of a lease, not a retry. */
const longestPauseMs = 10_000
const showEveryMs = 100
/** How often a row is written where nothing can be replaced. */
const printEveryMs = 1_000
const settleTimeoutMs = 120_000

/** What became of the webhooks. */
export interface RunResult extends Progress {
  readonly ids: ReadonlyArray<string>
  readonly seconds: number
}

/** Posts the webhooks and waits until all are settled, or time is up, showing how far they are. */
export async function runWebhooks(
  sql: Sql,
  url: string,
  webhooks: ReadonlyArray<Webhook>,
  onPublished: () => void,
): Promise<RunResult> {
  const ids: string[] = []
  const beganMs = performance.now()
  const secondsSince = (): number => (performance.now() - beganMs) / 1000
  // The rate is that of the busy time: then come pauses before retries.
  let busySeconds = Number.POSITIVE_INFINITY
  const display = startDisplay(sql, ids, () => Math.min(secondsSince(), busySeconds))
  try {
    await postWebhooks(url, webhooks, (id) => {
      ids.push(id)
      onPublished()
    })
    for (;;) {
      const progress = await readProgress(sql, ids)
      const isPausing = progress.dueInMs !== null && progress.dueInMs > 0 && progress.dueInMs < longestPauseMs
      if (isPausing || progress.waiting === 0) busySeconds = Math.min(busySeconds, secondsSince())
      if (progress.waiting === 0 || secondsSince() * 1000 > settleTimeoutMs) {
        const seconds = secondsSince()
        await display.finish()
        return { ...progress, ids, seconds }
      }
      await sleep(lookEveryMs)
    }
  } finally {
    display.stop()
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
