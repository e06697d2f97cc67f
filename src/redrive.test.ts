import { beforeEach, expect, it } from 'vitest'
import { testDatabase } from '../tests/support/database.ts'
import { day, emptyBus, start } from '../tests/support/retention.ts'
import { redrive } from './redrive.ts'

const database = await testDatabase()
const { sql, connect } = database
let bus = await emptyBus(database)

beforeEach(async () => {
  bus = await emptyBus(database)
})

/** Publishes events that end in the dead letters; returns the ids of these, in order. */
async function deadLetters(count: number): Promise<string[]> {
  for (let made = 0; made < count; made++) await bus.publish()
  bus.fail('always')
  await bus.poll(start)
  await bus.poll(day(1))
  bus.fail('none')
  const rows = await sql<{ id: string }[]>`select id from loopless.dead_letter order by event_xid, event_id`
  return rows.map((row) => row.id)
}

it('takes the named dead letters back: due now, for their handler, attempts at 0, history kept', async () => {
  const [first, second] = await deadLetters(2)
  expect(await redrive(sql, day(2), [first ?? ''])).toBe(1)
  expect(await sql`select id from loopless.dead_letter`).toEqual([{ id: second }])
  expect(await sql`select handler, reason, attempt, due_at, lease from loopless.delivery`).toEqual([
    { handler: 'keeper', reason: 'redriven', attempt: 0, due_at: day(2), lease: null },
  ])
  await bus.poll(day(2))
  expect(bus.handled).toHaveLength(1)
  expect(await sql`select count(*)::int as attempts from loopless.attempt`).toEqual([{ attempts: 4 }])
})

it('takes all of them back when no ids are given, and none when the list is empty', async () => {
  await deadLetters(3)
  expect(await redrive(sql, day(2), [])).toBe(0)
  expect(await redrive(sql, day(2))).toBe(3)
  expect(await redrive(sql, day(2))).toBe(0)
  await bus.poll(day(2))
  expect(bus.handled).toHaveLength(3)
})

it('passes over ids that are not there', async () => {
  const [first] = await deadLetters(1)
  expect(await redrive(sql, day(2), ['999999', first ?? '', '9223372036854775807'])).toBe(1)
})

it('counts attempts from 1 again, so that the same handler can fail as often as before', async () => {
  const [first] = await deadLetters(1)
  await redrive(sql, day(2), [first ?? ''])
  bus.fail('always')
  await bus.poll(day(2))
  await bus.poll(day(3))
  expect(await sql`select attempt from loopless.attempt order by id`).toEqual(
    [1, 2, 1, 2].map((attempt) => ({ attempt })),
  )
  expect(await sql`select reason, attempts from loopless.dead_letter`).toEqual([
    { reason: 'exhausted', attempts: 2 },
  ])
})

it('makes one delivery of a dead letter that two redrive together', async () => {
  await deadLetters(5)
  const other = connect({ max: 1 })
  const counts = await Promise.all([redrive(sql, day(2)), redrive(other, day(2))])
  expect(counts.sort()).toEqual([0, 5])
  await bus.poll(day(2))
  expect(bus.handled).toHaveLength(5)
})
