import { afterAll, beforeEach, expect, onTestFinished, test } from 'vitest'
import {
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  poll,
  publishMany,
  type Sql,
} from '../src/index.ts'
import { testDatabase } from './support/database.ts'
import { type ProxyMessage, startProxy } from './support/proxy.ts'
import { statementReader } from './support/statements.ts'

// A claim is two statements: what is leased is committed before it is read. Here the poller is slow to read it, or it is
// taken away in between.

const { url, sql } = await testDatabase()
const proxy = await startProxy(url)
afterAll(() => proxy.close())
beforeEach(async () => {
  proxy.judge(() => 'forward')
  await sql`truncate loopless.event, loopless.delivery`
  await sql`update loopless.batch set settled_at = coalesce(settled_at, now()), lease = null, claimed_at = null`
})

const now = new Date('2030-01-01T00:00:00Z')
const later = new Date(now.getTime() + 75_000)
const happened = defineEvent<{ text?: string }>('slow.happened')
const handlers = defineHandlers({ note: defineHandler(happened, {}, async () => {}) })

function away(options?: { prepare: false }): Sql {
  const client = connect(proxy.url, { applicationName: 'slow', ...options })
  onTestFinished(() => client.end({ timeout: 1 }))
  return client
}

const pollBy = (client: Sql, at = now) => poll(at, { sql: client, handlers, log: () => {} })

/** Stalls before what is leased is read for the n-th time, or before the answer; resolves when it is there. */
function stallAtReading(side: ProxyMessage['from'], place: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const read = statementReader()
  let sent = 0
  let isStalled = false
  proxy.judge((message) => {
    if (read(message)?.includes('loopless.read_leased(')) sent++
    if (sent < place || isStalled || message.from !== side) return 'forward'
    isStalled = true
    resolve()
    return 'stall'
  })
  return promise
}

const waitEvents = async (): Promise<unknown[]> =>
  (await sql`select wait_event from pg_stat_activity where application_name = 'slow'`).map(
    ({ wait_event }) => wait_event,
  )

test('a poller that is slow to read what it claimed keeps no other poller waiting', async () => {
  const client = away()
  const stalled = stallAtReading('server', 2)
  expect(await pollBy(client)).toMatchObject({ claimed: 0 }) // so that the driver sends both statements at once
  const big = { text: 'x'.repeat(512 * 1024) } // all of them are more than the sockets hold
  await publishMany(
    sql,
    Array.from({ length: 30 }, () => happened(big)),
  )
  const slow = pollBy(client)
  await stalled
  await expect.poll(waitEvents).toEqual(['ClientWrite'])

  await publishMany(sql, [happened({})])
  expect(await pollBy(sql)).toMatchObject({ claimed: 1, succeeded: 1 })

  proxy.resume()
  expect(await slow).toMatchObject({ claimed: 30, succeeded: 30 })
  expect(await sql`select from loopless.batch where settled_at is null`).toEqual([])
})

test.for<[string, { prepare: false } | undefined]>([
  ['sent with the claim', undefined],
  ['sent when the claim is answered', { prepare: false }],
])('what is lost before it is read, %s, is left to whom it belongs', async ([, options]) => {
  const client = away(options)
  await publishMany(sql, [happened({}), happened({})])
  const stalled = stallAtReading('client', 1)
  const slow = pollBy(client)
  await stalled
  // its lease runs out: another poller frees the batch, and runs its events alone
  await expect.poll(() => pollBy(sql, later)).toMatchObject({ repaired: 2, succeeded: 2 })
  await publishMany(sql, [happened({})])
  proxy.resume()
  expect(await slow).toMatchObject({ claimed: 1, succeeded: 1 })
  expect(await sql`select from loopless.batch where settled_at is null`).toEqual([])
  expect(await sql`select from loopless.delivery`).toEqual([])
})

test('what somebody removes by hand before it is read holds nobody up', async () => {
  const client = away()
  await publishMany(sql, [happened({}), happened({})])
  const stalled = stallAtReading('client', 1)
  const slow = pollBy(client)
  await stalled
  await sql`delete from loopless.event`
  await publishMany(sql, [happened({})])
  proxy.resume()
  expect(await slow).toMatchObject({ claimed: 1, succeeded: 1 })
  expect(await sql`select from loopless.batch where settled_at is null`).toEqual([])
})
