import { claim, type Work } from '../../src/claim.ts'
import { defineHandler } from '../../src/handler.ts'
import { defineHandlers } from '../../src/handler-set.ts'
import { type PollReport, poll } from '../../src/index.ts'
import { type PruneReport, type PruneSettings, prune } from '../../src/prune.ts'
import type { TestDatabase } from './database.ts'

/** When these tests begin: long after anything was published, so that the time of settling decides. */
export const start: Date = new Date('2100-01-01T00:00:00Z')

/** Days after the start. */
export function day(days: number): Date {
  return new Date(start.getTime() + days * 86_400_000)
}

/** What a prune says that found nothing to remove. */
export const nothing: PruneReport = {
  events: 0,
  batches: 0,
  attempts: 0,
  deadLetters: 0,
  dedupeKeys: 0,
  wakeFailures: 0,
  isComplete: true,
}

type Failure = 'none' | 'always'

/** An empty bus in a test's database, with one handler for `order.placed`, and the steps of its life. */
export interface Bus {
  /** The events the handler has handled, in order. */
  readonly handled: string[]
  /** What the handler does from now on; it has two attempts. */
  fail(kind: Failure): void
  publish(options?: { dueAt?: Date; dedupeKey?: string }): Promise<string>
  poll(now: Date): Promise<PollReport>
  /** A claim by a poller that says nothing more. */
  claim(now: Date, events?: number): Promise<Work>
  prune(now: Date, settings?: PruneSettings): Promise<PruneReport>
  /** Ids of the events in the log, in order. */
  events(): Promise<string[]>
}

export async function emptyBus({ sql }: TestDatabase): Promise<Bus> {
  await clear(sql)
  const handled: string[] = []
  let failure: Failure = 'none'
  const handlers = defineHandlers({
    keeper: defineHandler('order.placed', { maxAttempts: 2, jitter: 0 }, ({ id }) => {
      if (failure === 'always') throw new Error('not now')
      handled.push(id)
    }),
  })
  return {
    handled,
    fail: (kind) => {
      failure = kind
    },
    publish: async ({ dueAt, dedupeKey } = {}) => {
      const [row] = await sql<{ id: string }[]>`
        select loopless.publish(
          'order.placed', '{}', due_at => ${dueAt ?? null}, dedupe_key => ${dedupeKey ?? null}) as id`
      return row?.id ?? ''
    },
    poll: (now) => poll(now, { sql, handlers }),
    claim: (now, events = 100) =>
      claim(sql, {
        now,
        until: new Date(now.getTime() + 60_000),
        events,
        bytes: 1e9,
        deliveries: 100,
        handlerSet: handlers.hash,
      }),
    prune: (now, settings) => prune(sql, now, settings),
    events: async () => {
      const rows = await sql<{ id: string }[]>`select id from loopless.event order by xid, id`
      return rows.map((row) => row.id)
    },
  }
}

/** As after a migration: nothing but a baseline. */
async function clear(sql: TestDatabase['sql']): Promise<void> {
  await sql`
    truncate loopless.event, loopless.batch, loopless.delivery, loopless.attempt, loopless.dead_letter,
      loopless.dedupe_key`
  await sql`select loopless.rebase(${day(-1000)})`
}
