import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import {
  defineHandler,
  defineHandlers,
  drain,
  type HandlerSet,
  type PolledMessage,
  type Sql,
} from '../src/index.ts'

/** Which log events go to. */
export type LogTable = 'loopless.event' | 'raw_loop.event'

const padding = 'x'.repeat(200)

/** Empties a log and puts events of about 230 bytes in, as one transaction; vacuums and checkpoints, so that nothing of that is measured. */
export async function fillLog(sql: Sql, table: LogTable, count: number): Promise<void> {
  await sql`truncate ${sql(table)}`
  await appendEvents(sql, table, count)
  await sql`vacuum analyze ${sql(table)}`
  await sql`checkpoint`
}

export async function appendEvents(sql: Sql, table: LogTable, count: number): Promise<void> {
  await sql`
    insert into ${sql(table)} (name, payload)
    select 'order.created', json_build_object('orderId', i, 'p', ${padding}::text) from generate_series(1, ${count}::int) i`
}

/** One handler that does nothing, as users write them: asynchronous. */
export const idleHandlers: HandlerSet = defineHandlers({
  idle: defineHandler('order.created', {}, async () => {}),
})

/** One handler that inserts a row, exactly once. */
export const insertingHandlers: HandlerSet = defineHandlers({
  insert: defineHandler('order.created', { transactional: true }, async ({ id, name }, { tx }) => {
    await tx`insert into public.effect (event_id, name) values (${id}, ${name})`
  }),
})

/**
 * Drains with claims of up to one size, until nothing is left or `most` events are handled.
 * @returns the number of events; throws when one did not succeed
 */
export async function drainLog(
  sql: Sql,
  handlers: HandlerSet,
  batchSize: number,
  most = Number.POSITIVE_INFINITY,
): Promise<number> {
  const stop = new AbortController()
  let count = 0
  const onPolled = (message: unknown): void => {
    count += (message as PolledMessage).report.claimed
    if (count >= most) stop.abort()
  }
  subscribe('loopless:polled', onPolled)
  const report = await drain({
    sql,
    handlers,
    limits: { events: batchSize },
    clock: () => new Date(),
    deadline: new Date(Date.now() + 600_000),
    signal: stop.signal,
  })
  unsubscribe('loopless:polled', onPolled)
  if (report.succeeded + report.released !== report.claimed)
    throw new Error(`Expected all to succeed, got ${JSON.stringify(report)}.`)
  return report.succeeded
}
