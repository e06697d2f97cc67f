import { describe, expect, it } from 'vitest'
import { prune } from '../src/prune.ts'
import { testDatabase } from './support/database.ts'
import { day, emptyBus, start } from './support/retention.ts'

const database = await testDatabase()
const { sql } = database

describe('prune by chunks', () => {
  it('goes on behind what it kept, with any size of chunk', async () => {
    const { publish, poll, prune, events, fail } = await emptyBus(database)
    const dead: string[] = []
    for (let count = 0; count < 12; count++) {
      fail(count % 3 === 0 ? 'always' : 'none')
      const id = await publish()
      if (count % 3 === 0) dead.push(id)
      await poll(start)
    }
    fail('always')
    await poll(day(1))
    expect(await prune(day(9), { chunk: 1 })).toMatchObject({
      events: 8,
      attempts: 0,
      deadLetters: 0,
      isComplete: true,
    })
    expect(await events()).toEqual(dead)
    expect(await prune(day(40), { chunk: 3 })).toMatchObject({ events: 4, attempts: 8, deadLetters: 4 })
    expect(await sql`select from loopless.attempt`).toEqual([])
  })

  it('looks at no row twice', async () => {
    const { publish, poll, fail } = await emptyBus(database)
    fail('always')
    for (let count = 0; count < 4; count++) await publish()
    await poll(start)
    const seen: string[] = []
    let place = { xid: '0', id: '0' }
    for (;;) {
      const [row] = await sql<{ xid: string | null; id: string }[]>`
        select last_xid::text as xid, last_id as id
        from loopless.prune_events(${day(9)}, ${place.xid}::text::xid8, ${place.id}, 1)`
      if (!row?.xid) break
      place = { xid: row.xid, id: row.id }
      seen.push(row.id)
    }
    expect(seen).toEqual([...new Set(seen)])
    expect(seen).toHaveLength(4)
  })

  it('stops between two chunks when it is told to, and says so', async () => {
    const { publish, poll, events } = await emptyBus(database)
    for (let count = 0; count < 3; count++) await publish()
    await poll(start)
    const controller = new AbortController()
    const aborting = new Proxy(sql, {
      apply(target, self, args: [TemplateStringsArray]) {
        if (args[0].join('').includes('prune_events')) controller.abort()
        return Reflect.apply(target, self, args)
      },
    })
    expect(await prune(aborting, day(9), { chunk: 1, signal: controller.signal })).toMatchObject({
      events: 1,
      isComplete: false,
    })
    expect(await events()).toHaveLength(2)
  })

  it('removes each row once when several run together', async () => {
    const { publish, poll, prune, events } = await emptyBus(database)
    for (let count = 0; count < 30; count++) await publish()
    await poll(start)
    const reports = await Promise.all([1, 2, 7].map((chunk) => prune(day(9), { chunk })))
    expect(reports.reduce((sum, report) => sum + report.events, 0)).toBe(30)
    expect(await events()).toEqual([])
    expect(await sql`select count(*)::int as batches from loopless.batch`).toEqual([{ batches: 2 }])
  })
})

describe('prune of a database that was restored into another cluster', () => {
  /** What the old cluster left: snapshots far in this cluster's future, or far in its past. */
  async function restoredBus(xmax: string) {
    const bus = await emptyBus(database)
    await bus.publish()
    await bus.poll(start)
    await sql`update loopless.bus set cluster = 'another'`
    await sql`
      update loopless.batch
      set from_snapshot = ${`${xmax}:${xmax}:`}::pg_snapshot, to_snapshot = ${`${xmax}:${xmax}:`}::pg_snapshot`
    return bus
  }

  it.each(['1', '1000000000'])(
    'removes no event before the first claim there (old xmax %s)',
    async (xmax) => {
      const { publish, prune, poll, handled } = await restoredBus(xmax)
      const id = await publish()
      expect(await prune(day(1000))).toMatchObject({ events: 0 })
      await poll(day(1000))
      expect(handled).toContain(id)
    },
  )

  it.each(['1', '1000000000'])(
    'believes no snapshot of the old one afterwards (old xmax %s)',
    async (xmax) => {
      const { publish, prune, poll, claim, events, handled } = await restoredBus(xmax)
      await poll(day(1)) // rebases
      const leased = await publish()
      await claim(day(1))
      const unclaimed = await publish()
      await prune(day(1000))
      expect(await events()).toEqual([leased, unclaimed])
      await poll(day(1000))
      expect(handled).toEqual(expect.arrayContaining([leased, unclaimed]))
    },
  )

  it('removes events that stand at position 0, once they are handled', async () => {
    const { prune, poll, events } = await restoredBus('1')
    await sql`update loopless.event set xid = '900000000'`
    await poll(day(1))
    expect(await sql`select xid::text from loopless.event`).toEqual([{ xid: '0' }])
    expect(await prune(day(8))).toMatchObject({ events: 0 })
    expect(await prune(day(9))).toMatchObject({ events: 1 })
    expect(await events()).toEqual([])
  })
})
