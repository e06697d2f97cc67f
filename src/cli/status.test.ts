import { beforeEach, expect, it } from 'vitest'
import { commandLine, handlersPath } from '../../tests/support/cli.ts'
import { testDatabase } from '../../tests/support/database.ts'
import { claim, type Work } from '../claim.ts'

const { sql, url, connect } = await testDatabase()
const loopless = commandLine(url)

beforeEach(async () => {
  await sql`truncate loopless.event, loopless.batch, loopless.delivery, loopless.dead_letter, loopless.handler`
  await sql`update loopless.bus set handler_set = null, registered_at = null`
  await sql`select loopless.rebase(now())`
})

async function publish(count: number, name = 'order.placed'): Promise<void> {
  await sql`select loopless.publish(${name}, '{}') from generate_series(1, ${count}::int)`
}

/** A poll that holds its lease for a minute, and says nothing more. */
function hold(events: number, now = new Date()): Promise<Work> {
  const until = new Date(now.getTime() + 60_000)
  return claim(sql, { now, until, events, bytes: 1e9, deliveries: events, handlerSet: '' })
}

async function status(): Promise<Record<string, unknown>> {
  const { code, json } = await loopless('status', '--json')
  expect(code).toBe(0)
  return json() as Record<string, unknown>
}

it('counts what no poll has claimed, by name, and tells the oldest', async () => {
  await publish(3)
  await publish(2, 'order.shipped')
  await sql`update loopless.event set published_at = '2026-01-01' where id = (select min(id) from loopless.event)`
  expect(await status()).toMatchObject({
    backlog: { events: 5, isEstimate: false, oldestAt: '2026-01-01T00:00:00.000Z' },
    dead: { count: 0, isMore: false },
    events: [
      { name: 'order.placed', backlog: 3, due: 0, later: 0, leased: 0, dead: 0 },
      { name: 'order.shipped', backlog: 2 },
    ],
    registered: null,
    isMoved: false,
  })
})

it('counts the rest of a window, what came after it, and what committed late into either', async () => {
  const early = await connect({ max: 1 }).reserve()
  const late = await connect({ max: 1 }).reserve()
  for (const session of [early, late]) {
    await session`begin`
    await session`select loopless.publish('order.late', '{}')`
  }
  await publish(5)
  await hold(2)
  await early`commit`
  await publish(1)
  expect(await status()).toMatchObject({
    backlog: { events: 5 },
    batches: { leased: { batches: 1, events: 2 } },
  })
  await hold(3)
  expect(await status()).toMatchObject({ backlog: { events: 2 } })
  await hold(1)
  await late`commit`
  expect(await status()).toMatchObject({
    backlog: { events: 2 },
    events: expect.arrayContaining([expect.objectContaining({ name: 'order.late' })]),
  })
  for (const session of [early, late]) session.release()
  await hold(100)
  expect(await status()).toMatchObject({ backlog: { events: 1 } })
  await hold(100)
  expect(await status()).toMatchObject({ backlog: { events: 0, oldestAt: null } })
})

it('tells batches that are leased, given back, and left by a poller that died', async () => {
  await publish(6)
  const { token, batchId } = await hold(3)
  await sql`
    select loopless.settle(
      now(), ${token}, ${batchId},
      (select json_build_object('split', json_build_object('xid', min(xid::text), 'id', min(id))) from loopless.event))`
  await sql`insert into loopless.event (name, payload) values ('order.placed', '{}')`
  expect(await status()).toMatchObject({
    batches: { open: { batches: 1, events: 2 }, leased: { batches: 0 } },
  })
  await hold(2)
  await hold(1, new Date(Date.now() - 3_600_000))
  expect(await status()).toMatchObject({
    batches: { leased: { batches: 1, events: 2 }, expired: { batches: 1, events: 1 }, open: { batches: 0 } },
  })
  const { out } = await loopless('status')
  expect(out).toMatch(/^Under way +1 batch, 2 events$/m)
  expect(out).toMatch(/^Poller died +1 batch, 1 event: the next poll runs them again$/m)
  expect(out).toMatch(/^Lease ends +\S+Z \(in \d+ s\)$/m)
})

it('tells deliveries that are due, due later and under way, and dead letters', async () => {
  await sql`select loopless.publish('order.reminded', '{}', due_at => now() - interval '1 minute')`
  await sql`select loopless.publish('order.reminded', '{}', due_at => now() + interval '1 hour')`
  await sql`
    insert into loopless.dead_letter (event_xid, event_id, handler, reason, attempts, error_class, error_message, died_at)
    select xid, id, 'mail', 'discarded', 1, 'Error', '', now() from loopless.event limit 1`
  expect(await status()).toMatchObject({
    backlog: { events: 0 },
    deliveries: {
      due: { count: 1 },
      later: { count: 1 },
      leased: { count: 0 },
      nextDueAt: expect.any(String),
    },
    dead: { count: 1 },
    events: [{ name: 'order.reminded', due: 1, later: 1, leased: 0, dead: 1 }],
  })
  await hold(1)
  await hold(1)
  expect(await status()).toMatchObject({ deliveries: { due: { count: 0 }, leased: { count: 1 } } })
  const { out } = await loopless('status')
  expect(out).toMatch(/^Under way +1 delivery$/m)
  expect(out).toMatch(/^Next due +\S+Z \(in 60 min\)$/m)
  expect(out).toMatch(/^EVENT +BACKLOG +DUE +LATER +LEASED +DEAD\norder\.reminded +0 +0 +1 +1 +1$/m)
})

it('shows the registered handlers', async () => {
  expect((await loopless('status')).out).toContain('No handlers are registered')
  expect((await loopless('register', '--handlers', handlersPath)).code).toBe(0)
  const { out } = await loopless('status')
  expect(out).toMatch(/^Registered now: 2 handlers, set [0-9a-f]{12}$/m)
  expect(out).toMatch(/^HANDLER +TAKES\nmail +order\.\*\nstock +order\.placed$/m)
})

it('estimates a backlog of more than it counts, and says so', async () => {
  await sql`insert into loopless.event (name, payload) select 'order.placed', '{}' from generate_series(1, 60000)`
  await sql`
    with delayed as (
      insert into loopless.event (name, payload, due_at)
      select 'order.reminded', '{}', now() + interval '1 day' from generate_series(1, 50001)
      returning xid, id, due_at
    )
    insert into loopless.delivery (event_xid, event_id, reason, due_at) select xid, id, 'delayed', due_at from delayed`
  const json = await status()
  expect(json).toMatchObject({ backlog: { isEstimate: true }, countedTo: 50_000 })
  expect(json).toMatchObject({ deliveries: { later: { count: 50_000, isMore: true } } })
  const { out } = await loopless('status')
  expect(out).toMatch(/^Backlog +about 1\d\d,\d\d\d events$/m)
  expect(out).toMatch(/^Due later +50,000\+ deliveries$/m)
  expect(out).toContain('Of each column the first 50,000 were counted.')
})

it('says when the database came from another cluster and nothing is known yet', async () => {
  await sql`update loopless.bus set cluster = 'another'`
  expect((await loopless('status')).out).toMatch(/^Moved +from another cluster/)
  await sql`update loopless.bus set cluster = null`
})

it('fits 80 columns whatever the names', async () => {
  await publish(1, Array.from({ length: 20 }, () => 'abcdefghi').join('.'))
  const { out } = await loopless('status')
  for (const line of out.split('\n')) expect(line.length).toBeLessThanOrEqual(80)
})
