import { readFile } from 'node:fs/promises'
import type { Sql, TransactionSql } from '../src/index.ts'

/** Makes the tables and the claim of the raw loop, in a schema of its own. */
export async function createRawLoop(sql: Sql): Promise<void> {
  await sql.unsafe(await readFile(new URL('raw-loop.sql', import.meta.url), 'utf8'))
}

export interface RawEvent {
  readonly batch_id: string
  readonly batch_lease: string
  readonly id: string
  readonly name: string
  readonly payload: unknown
  readonly published_at: Date
}

/** Claims and settles until the log is empty. Returns the number of events. */
export async function drainRaw(sql: Sql, batchSize: number, most = Infinity): Promise<number> {
  let count = 0
  while (count < most) {
    const events = await claimRaw(sql, batchSize)
    const [first] = events
    if (first === undefined) break
    await settleRaw(sql, first)
    count += events.length
  }
  return count
}

/** The same with an insert for each event, in the transaction that settles. */
export async function drainRawInserts(sql: Sql, batchSize: number): Promise<number> {
  let count = 0
  for (;;) {
    const events = await claimRaw(sql, batchSize)
    const [first] = events
    if (first === undefined) return count
    await sql.begin(async (tx) => {
      for (const event of events)
        await tx`insert into public.effect (event_id, name) values (${event.id}, ${event.name})`
      await settleRaw(tx, first)
    })
    count += events.length
  }
}

async function claimRaw(sql: Sql, batchSize: number): Promise<RawEvent[]> {
  return sql<RawEvent[]>`
    select batch_id, batch_lease, id, name, payload, published_at
    from raw_loop.claim(${batchSize}, '1 minute')`
}

async function settleRaw(sql: Sql | TransactionSql, { batch_id, batch_lease }: RawEvent): Promise<void> {
  const settled = await sql`
    update raw_loop.batch set settled_at = now()
    where id = ${batch_id} and lease = ${batch_lease} and settled_at is null`
  if (settled.count !== 1) throw new Error(`Batch ${batch_id} of the raw loop lost its lease.`)
}
