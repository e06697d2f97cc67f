import { describe, expect, it } from 'vitest'
import { claim, release } from '../src/claim.ts'
import { settleStatement } from '../src/settle.ts'
import { later, now, testBus } from './support/bus.ts'

const bus = await testBus()
const { sql, connect } = bus

const limits = { now, until: later(75), events: 1, bytes: 1_000_000, deliveries: 1, handlerSet: '' }
const success = { failed: [], waiting: [], released: [], done: [] }

/** Pages that a claim reads to see what is due. */
async function pagesOfAgenda(): Promise<number> {
  return sql.begin(async (tx) => {
    await tx`set local enable_seqscan = off`
    await tx`set local enable_bitmapscan = off`
    const [row] = await tx<{ 'QUERY PLAN': [{ Plan: { 'Shared Hit Blocks': number } }] }[]>`
      explain (analyze, buffers, format json) select batch_at from loopless.agenda`
    return row?.['QUERY PLAN'][0].Plan['Shared Hit Blocks'] ?? Number.NaN
  })
}

it('leaves a claim no more to read, however many batches were settled since', async () => {
  await bus.publish('counted', ...Array.from({ length: 300 }, (_, n) => n))
  const holder = await connect({ max: 1 }).reserve()
  await holder`begin isolation level repeatable read`
  await holder`select 1`
  const pages: number[] = []
  for (let n = 0; n < 300; n++) {
    const work = await claim(sql, { ...limits, until: later(75 + n) })
    await settleStatement(sql, { work, outcomes: success, now }, false)
    if (n % 100 === 99) pages.push(await pagesOfAgenda())
  }
  await holder`rollback`
  holder.release()
  expect(Math.max(...pages)).toBeLessThan(15)
})

describe('a batch whose poller died is found', () => {
  it('though batches with longer and shorter leases were claimed before and after', async () => {
    await bus.publish('counted', 1, 2, 3)
    for (const until of [later(90), later(30), later(60)]) await claim(sql, { ...limits, until })
    for (const [at, repaired] of [
      [later(29), 0],
      [later(30), 1],
      [later(60), 1],
      [later(90), 1],
    ] as const) {
      expect((await claim(sql, { ...limits, now: at, until: later(999) })).repaired).toBe(repaired)
    }
  })

  it('though it was given back, and leased again for less time than those claimed since', async () => {
    await bus.publish('counted', 1, 2, 3)
    const { token } = await claim(sql, { ...limits, until: later(60), events: 2 })
    await claim(sql, { ...limits, until: later(90) })
    await release(sql, token, now)
    await claim(sql, { ...limits, until: later(40) })
    await claim(sql, { ...limits, until: later(20), events: 2 })
    for (const [at, repaired] of [
      [later(20), 1],
      [later(40), 1],
      [later(90), 1],
    ] as const) {
      expect((await claim(sql, { ...limits, now: at, until: later(999) })).repaired).toBe(repaired)
    }
  })
})
