import type { Notice, Sql } from 'postgres'
import { describe, expect, test } from 'vitest'
import { defineEvent, defineHandler, defineHandlers, poll, publishMany } from '../src/index.ts'
import { type TestDatabase, testDatabase } from './support/database.ts'
import { readPlan, reportPlans, type Statement } from './support/plans.ts'

// Every statement of a poll reaches its rows by an index and reads no more than its share, whatever the planner knows.

const now = new Date('2030-01-01T00:00:00Z')
const happened = defineEvent<{ fails?: boolean }>('plan.happened')
const fail = ({ payload }: { payload: { fails?: boolean } }): void => {
  if (payload.fails) throw new Error('As told.')
}
const handlers = defineHandlers({
  plain: defineHandler(happened, { baseDelaySeconds: 0, jitter: 0 }, fail),
  transactional: defineHandler(happened, { baseDelaySeconds: 0, jitter: 0, transactional: true }, fail),
})

/** The indexes that claims, recovery and settling are made for. */
const indexes = [
  'event by event_position_idx',
  'batch by batch_head_idx',
  'batch by batch_open_idx',
  'batch by batch_pkey',
  'delivery by delivery_due_idx',
  'delivery by delivery_alone_idx',
  'delivery by delivery_leased_idx',
  'delivery by delivery_pkey',
]

interface Backlog {
  readonly unclaimed: number
  /** Of each kind: due, to run alone, leased, due later. */
  readonly deliveries: number
  /** Settled ones, and a hundredth of that leased ones. */
  readonly batches: number
}

/** A bus that has been busy for long: history, a backlog, and what dead pollers held. */
async function fill(sql: Sql, { unclaimed, deliveries, batches }: Backlog): Promise<void> {
  for (const table of ['event', 'batch', 'delivery', 'attempt', 'dead_letter']) {
    await sql`alter table ${sql(`loopless.${table}`)} set (autovacuum_enabled = off)`
  }
  await sql`
    with waiting as (
      insert into loopless.event (name, payload)
      select 'plan.happened', '{}' from generate_series(1, ${4 * deliveries}::int)
      returning id, xid
    )
    insert into loopless.delivery (event_xid, event_id, handler, reason, attempt, due_at, alone, lease)
    select xid, id, 'plain', 'retry', 1,
      ${now}::timestamptz + case id % 4 when 2 then interval '1 hour' when 3 then interval '1 day' else interval '-1 hour' end
        + id * interval '1 microsecond',
      id % 4 = 1, case id % 4 when 2 then gen_random_uuid() end
    from waiting`
  const batch = sql`
    insert into loopless.batch (
      lease, leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size,
      claimed_at, settled_at)`
  await sql`
    ${batch}
    select gen_random_uuid(), ${now}::timestamptz + interval '1 hour', s, s, '0', 0, '0', 0, 0, 0, ${now},
      case when n % 100 > 0 then ${now}::timestamptz end
    from generate_series(1, ${batches}::int) n, pg_current_snapshot() s`
  await die(sql)
  await sql`
    insert into loopless.event (name, payload)
    select 'plan.happened', case when n % 50 = 0 then '{"fails": true}' else '{}' end::json
    from generate_series(1, ${unclaimed}::int) n`
}

/** Pollers die with four parts of the log and with deliveries. */
async function die(sql: Sql): Promise<void> {
  for (let count = 0; count < 4; count++) {
    await publishMany(
      sql,
      Array.from({ length: 100 }, () => happened({})),
    )
    await abandon(sql, now)
  }
  await sql`
    update loopless.delivery set due_at = ${now}::timestamptz + interval '1 ms'
    where id in (select id from loopless.delivery where lease is not null order by id limit 100)`
}

/** A poller that dies with the next part of the log. */
async function abandon(sql: Sql, at: Date): Promise<void> {
  const until = new Date(at.getTime() + 1)
  await sql`select loopless.claim(${at}, gen_random_uuid(), ${until}, 100, 1000000, 0, null)`
}

/** Uses every statement so often that the session keeps a plan of each; leaves nothing behind. */
async function planAll(sql: Sql): Promise<void> {
  let at = new Date('2029-01-01T00:00:00Z')
  const pollAt = async (signal?: AbortSignal): Promise<void> => {
    at = new Date(at.getTime() + 100_000)
    await poll(at, { sql, handlers, log: () => {}, ...(signal && { signal }) })
  }
  for (let round = 0; round < 8; round++) {
    await publishMany(sql, [happened({}), happened({ fails: true })])
    await abandon(sql, at)
    await pollAt()
    await publishMany(sql, [happened({}), happened({ fails: true })])
    await pollAt(AbortSignal.abort())
    await pollAt()
  }
  for (let round = 0; round < 3; round++) await pollAt()
}

/** A session whose statements are recorded from `report` on. */
function recordingSession(open: TestDatabase['connect']): { sql: Sql; report(): Promise<Statement[]> } {
  const statements: Statement[] = []
  const onnotice = ({ message = '' }: Notice): void => {
    const statement = readPlan(message)
    if (statement) statements.push(statement)
  }
  const sql = open({ max: 1, onnotice })
  return {
    sql,
    report: async () => {
      await reportPlans(sql)
      statements.length = 0
      return statements
    },
  }
}

/** Recovery, a claim of everything there is, its settlement, what runs alone; then a part that was given back. */
async function pollBusily(sql: Sql): Promise<void> {
  const later = new Date(now.getTime() + 1_000)
  const options = { sql, handlers, log: () => {} }
  const report = await poll(later, options)
  expect(report).toMatchObject({ claimed: 500 + 100 + 20, repaired: 400 + 100, released: 0 })
  expect(await poll(later, { ...options, signal: AbortSignal.abort() })).toMatchObject({ released: 600 })
  expect(await poll(later, options)).toMatchObject({ claimed: 500 + 100 + 20, released: 0 })
}

/** Every row is found by an index, and none is read that is not wanted. */
function expectFrugal(statements: ReadonlyArray<Statement>): void {
  const scans = statements.flatMap((statement) => statement.scans)
  const ways = new Set(scans.map(({ what }) => what))
  expect([...ways]).toEqual(expect.arrayContaining(indexes))
  const hasOneRow = ['bus by Seq Scan', 'event_id_seq by Seq Scan']
  expect([...ways].filter((way) => !/_(idx|pkey)$/.test(way) && !hasOneRow.includes(way))).toEqual([])
  expect(Math.max(...scans.map(({ rows }) => rows))).toBeLessThanOrEqual(500)
  // with what those rows cost in pages, and 100 that have just died: nothing is walked over
  const costly = statements.filter(({ pages, scans }) => {
    const rows = scans.reduce((sum, scan) => sum + scan.rows, 0)
    return scans.length > 0 && pages > 200 + 30 * rows
  })
  expect(costly).toEqual([])
}

describe('with 1,000,000 events that nobody has analyzed', async () => {
  const { connect } = await testDatabase()

  test('on a session that planned its statements while the tables were empty', async () => {
    const { sql, report } = recordingSession(connect)
    await planAll(sql)
    await fill(sql, { unclaimed: 900_000, deliveries: 25_000, batches: 20_000 })
    const statements = await report()
    await pollBusily(sql)
    expectFrugal(statements)
  }, 60_000)
})

describe('with a backlog of 100,000', async () => {
  const { sql: filler, connect } = await testDatabase()
  const expectFrugalPolls = async (): Promise<void> => {
    const { sql, report } = recordingSession(connect)
    const statements = await report()
    await pollBusily(sql)
    expectFrugal(statements)
  }

  test('and no statistics', async () => {
    await fill(filler, { unclaimed: 110_000, deliveries: 25_000, batches: 20_000 })
    await expectFrugalPolls()
  })

  test('and fresh statistics', async () => {
    await die(filler)
    await filler`analyze`
    await expectFrugalPolls()
  })
})

describe('with a large transaction that was open when the window began', async () => {
  const { connect } = await testDatabase()

  test('reads no more of it than a claim takes', async () => {
    const writer = connect({ max: 1 })
    await writer.unsafe('begin')
    await writer`insert into loopless.event (name, payload) values ('plan.happened', '{}')`
    const { sql, report } = recordingSession(connect)
    await publishMany(sql, [happened({})])
    const until = new Date(now.getTime() + 3_600_000)
    const take = (count: number) => sql`
      select batch_id from loopless.claim(${now}, gen_random_uuid(), ${until}, ${count}, 100000000, 1, null)`
    await take(500)
    await writer`insert into loopless.event (name, payload) select 'plan.happened', '{}' from generate_series(1, 60000)`
    await writer.unsafe('commit')
    await publishMany(sql, [happened({})])
    for (let count = 0; count < 5; count++) await take(10_000)
    const statements = await report()
    await take(500)
    const [claim] = statements.filter(({ text }) => text.includes('from loopless.claim('))
    const [window] = statements.filter(({ scans }) => scans.some(({ rows }) => rows === 500))
    expect(window?.pages).toBeLessThan(50)
    expect(claim?.pages).toBeLessThan(150)
  })
})
