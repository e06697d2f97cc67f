import { beforeEach, expect, it } from 'vitest'
import { commandLine, handlersPath } from '../../tests/support/cli.ts'
import { testDatabase } from '../../tests/support/database.ts'
import { claim, type Work } from '../claim.ts'

const { sql, url } = await testDatabase()
const loopless = commandLine(url)

beforeEach(async () => {
  await sql`truncate loopless.event, loopless.batch, loopless.delivery, loopless.attempt, loopless.dead_letter`
  await sql`select loopless.rebase(now())`
  await loopless('register', '--handlers', handlersPath)
})

async function publish(name: string, payload: object = {}, ...options: string[]): Promise<string> {
  const { code, json } = await loopless('publish', name, JSON.stringify(payload), '--json', ...options)
  expect(code).toBe(0)
  return (json() as { id: string }).id
}

const poll = () => loopless('poll', '--handlers', handlersPath)

async function hold(now = new Date()): Promise<Work> {
  const [bus] = await sql<{ hash: string }[]>`select handler_set as hash from loopless.bus`
  const until = new Date(now.getTime() + 60_000)
  return claim(sql, { now, until, events: 10, bytes: 1e9, deliveries: 10, handlerSet: bus?.hash ?? '' })
}

async function why(id: string): Promise<{ state: string; out: string }> {
  const [text, json] = [await loopless('why', id), await loopless('why', id, '--json')]
  expect([text.code, json.code]).toEqual([0, 0])
  for (const line of text.out.split('\n')) expect(line.length).toBeLessThanOrEqual(80)
  return { state: (json.json() as { state: string }).state, out: text.out }
}

it('tells an event that no poll has claimed, with all its publisher said', async () => {
  const id = await publish('order.placed', { total: 1 }, '--header', 'trace=abc', '--dedupe-key', 'key-1')
  const { state, out } = await why(id)
  expect(state).toBe('unclaimed')
  const [row] = await sql`select xid::text from loopless.event where id = ${id}`
  expect(out).toContain(`Event ${id} order.placed: not claimed yet\n`)
  expect(out).toMatch(new RegExp(`^Published +\\S+Z \\(\\S.*\\) by transaction ${row?.['xid']}$`, 'm'))
  expect(out).toMatch(/^Headers +\{"trace":"abc"\}$/m)
  expect(out).toMatch(/^Payload +\{"total":1\}$/m)
  expect(out).toMatch(/^Dedupe key +key-1$/m)
  expect(out).toMatch(/^HANDLER +STATE +WHEN\nmail +waits for a poll\nstock +waits for a poll$/m)
})

it('tells an event that was handled: its batch, its window, its handlers', async () => {
  const id = await publish('order.placed')
  await poll()
  const { state, out } = await why(id)
  expect(state).toBe('handled')
  expect(out).toContain(`Event ${id} order.placed: handled\n`)
  expect(out).toMatch(/^Batch +\d+, 1 event$/m)
  expect(out).toMatch(/^Claimed +\S+Z \(.*\)$/m)
  expect(out).toMatch(/^Settled +\S+Z \(.*\)$/m)
  expect(out).toMatch(/^Window +\d+:\d+:\S*( to \d+:\d+:\S*|…)$/m)
  expect(out).toMatch(/^mail +done +\S+Z\nstock +done +\S+Z$/m)
})

it('tells an event that a poll holds, and one whose poll gave it back', async () => {
  const id = await publish('order.placed')
  const { token } = await hold()
  expect(await why(id)).toMatchObject({
    state: 'leased',
    out: expect.stringMatching(/^Lease ends +\S+Z \(in \d+ s\)$/m),
  })
  await sql`select loopless.release(now(), ${token})`
  expect(await why(id)).toMatchObject({
    state: 'open',
    out: expect.stringContaining('given back by a poll, free to be claimed'),
  })
})

it('tells a part of a batch from the batch that it was split from', async () => {
  const first = await publish('order.placed')
  const second = await publish('order.placed')
  const { token, batchId, items } = await hold()
  const cut = { split: { xid: items[0]?.xid, id: first } }
  await sql`select loopless.settle(now(), ${token}, ${batchId}, ${JSON.stringify(cut)}::text::json)`
  const { state, out } = await why(second)
  expect(state).toBe('open')
  expect(out).toMatch(new RegExp(`^Batch +\\d+, 1 event, a part of batch ${batchId}$`, 'm'))
  expect(await why(first)).toMatchObject({ state: 'handled' })
})

it('tells an event that waits for a retry, and what failed, without the control characters of the error', async () => {
  const id = await publish('order.placed', { fate: 'retry' })
  await poll()
  const { state, out } = await why(id)
  expect(state).toBe('waiting')
  expect(out).toContain(`Event ${id} order.placed: waits for mail, due in 60 min: to be tried again\n`)
  expect(out).toMatch(/^mail +attempt 2 due in 60 min +\S+Z$/m)
  expect(out).toMatch(/^ +1 +mail +.* +\d+ ms +Error: the mail server said/m)
  expect(out).not.toContain('\u001b')
})

it('tells an event that is dead, and how to look at it', async () => {
  const id = await publish('order.placed', { fate: 'discard' })
  await poll()
  const { state, out } = await why(id)
  const [letter] = await sql`select id from loopless.dead_letter`
  expect(state).toBe('dead')
  expect(out).toContain(`Event ${id} order.placed: dead for mail\n`)
  expect(out).toMatch(/^mail +dead: the handler discarded it +\S+Z$/m)
  expect(out).toContain(`loopless dead show ${letter?.['id']}`)
})

it('tells a delayed event', async () => {
  const id = await publish('order.placed', {}, '--due-at', '2100-01-01T08:00:00Z')
  await poll()
  const { state, out } = await why(id)
  expect(state).toBe('waiting')
  expect(out).toMatch(/^Delayed +until 2100-01-01T08:00:00\.000Z \(in \d+ d\)$/m)
  expect(out).toMatch(/^\(all\) +due in \d+ d: delayed by its publisher +2100-01-01T08:00:00\.000Z$/m)
})

it('says so when no registered handler takes the event', async () => {
  const id = await publish('nobody.cares')
  await poll()
  expect(await why(id)).toMatchObject({
    state: 'unhandled',
    out: expect.stringContaining(`Event ${id} nobody.cares: unhandled: no registered handler takes it\n`),
  })
})

it('says so when a handler is not registered any more', async () => {
  const id = await publish('order.placed', { fate: 'discard' })
  await poll()
  await sql`delete from loopless.handler where name = 'mail'`
  expect((await why(id)).out).toMatch(/^mail \(unregistered\) +dead: the handler discarded it +\S+Z$/m)
})

it('tells an event that came from another cluster', async () => {
  const id = await publish('order.placed')
  await sql`update loopless.event set xid = '900000000'`
  await poll()
  const { state, out } = await why(id)
  expect(state).toBe('handled')
  expect(out).toMatch(/^Published +.* in an earlier cluster$/m)
})

it('says what may have become of an event that is not in the log, and what is left of it', async () => {
  const id = await publish('order.placed', { fate: 'discard' })
  await poll()
  await sql`truncate loopless.event, loopless.dead_letter`
  const { code, out, err } = await loopless('why', id)
  expect(code).toBe(1)
  expect(out).toMatch(/^ +1 +mail +.*DiscardRequest: not ours$/m)
  expect(err).toContain(`loopless: Event ${id} is not in the log: `)
  expect(await loopless('why', '999999999')).toMatchObject({
    code: 1,
    err: `loopless: There is no event 999999999: the newest id given out is ${id}.\n`,
  })
})
