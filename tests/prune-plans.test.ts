import { expect, it } from 'vitest'
import { prune } from '../src/prune.ts'
import { testDatabase } from './support/database.ts'
import { day, nothing } from './support/retention.ts'

const { connect } = await testDatabase()

/** Plans of the statements inside the functions, as the server logs them. */
const plans: string[] = []
const sql = connect({ max: 1, onnotice: ({ message }) => plans.push(message ?? '') })

/** As a busy bus is after months: settled batches, a backlog, dead letters among the handled, attempts. */
async function fill(): Promise<void> {
  await sql`
    with published as (
      insert into loopless.event (name, payload)
      select 'order.placed', '{}' from generate_series(1, 60000)
      returning id, xid
    ), dead as (
      insert into loopless.dead_letter (
        event_xid, event_id, handler, reason, attempts, error_class, error_message, died_at)
      select xid, id, 'keeper', 'exhausted', 1, 'Error', '', ${day(-50)} from published where id % 100 = 0
    ), attempts as (
      insert into loopless.attempt (event_id, handler, attempt, began_at, ended_at, error_class, error_message)
      select id, 'keeper', 1, ${day(-90)},
        ${day(-90)}::timestamptz + case when id % 10 = 5 then interval '89 days' else id * interval '1 second' end,
        'Error', ''
      from published where id % 5 = 0
    )
    insert into loopless.dedupe_key (event_name, key, event_id, expires_at)
    select 'order.placed', id::text, id, ${day(-9)} from published where id % 10 = 0`
  await sql`
    insert into loopless.batch (
      leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size,
      claimed_at, settled_at)
    select
      ${day(-20)}, pg_current_snapshot(), pg_current_snapshot(), '0', 0, '0', 1, 60000, 1,
      ${day(-20)}::timestamptz + n * interval '1 minute', ${day(-20)}::timestamptz + n * interval '1 minute'
    from generate_series(1, 20000) n`
  await sql`insert into loopless.event (name, payload) select 'order.placed', '{}' from generate_series(1, 40000)`
}

it('reaches every row by an index, on a connection that planned it while the tables were empty', async () => {
  await sql`select loopless.claim(${day(-100)}, gen_random_uuid(), ${day(-100)}, 1, 1, 1, null)`
  for (let round = 0; round < 8; round++) await prune(sql, day(0))
  await fill()
  await sql.unsafe(`
    load 'auto_explain';
    set auto_explain.log_min_duration = 0;
    set auto_explain.log_nested_statements = on;
    set auto_explain.log_analyze = on;
    set client_min_messages = log;`)
  plans.length = 0
  expect(await prune(sql, day(0), { deadLetterDays: 60 })).toEqual({
    ...nothing,
    events: 53_400, // those that a handler has failed with lately stay
    batches: expect.any(Number),
    attempts: 5_400,
    dedupeKeys: 6_000,
  })
  const scans = new Set(
    plans.flatMap((plan) => plan.match(/\w+ (?:Only )?Scan .*? on \w+|Seq Scan on \w+/g) ?? []),
  )
  // bus has one row
  expect([...scans].filter((scan) => /^(Seq|Bitmap)/.test(scan) && !scan.endsWith('on bus'))).toEqual([])
  for (const index of [
    'event_position_idx',
    'batch_pkey',
    'batch_baseline_idx',
    'batch_split_idx',
    'delivery_event_idx',
    'dead_letter_event_idx',
    'attempt_ended_idx',
    'attempt_event_idx',
    'dead_letter_died_idx',
    'dedupe_key_expires_idx',
  ]) {
    expect([...scans].join('\n'), index).toContain(`using ${index}`)
  }
  // no statement walks further than its chunk, not even over rows that it passes over
  const counts = plans.flatMap((plan) => [
    ...plan.matchAll(/(?:actual.* rows=|Rows Removed by Filter: )(\d+)/g),
  ])
  expect(Math.max(...counts.map(([, count]) => Number(count)))).toBeLessThanOrEqual(5_001)
})
