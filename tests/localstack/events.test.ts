import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, expect, inject, it, vi } from 'vitest'
import { installAwsLambda } from '../../infra/local/aws-lambda.ts'
import { startBridge } from '../../infra/local/bridge.ts'
import { defineEvent, publishMany } from '../../src/index.ts'
import { testDatabase } from '../support/database.ts'
import { newDeployment } from '../support/deployment.ts'
import { seenByFunctions } from '../support/seen-by-functions.ts'
import { signedWebhook } from '../support/signed-webhook.ts'

const secret = 'the secret of a test'
const repository = { full_name: 'loopless/test' }
/** For what is awaited; only what is broken takes so long. */
const patience = { timeout: 240_000, interval: 500 }

const { url, sql } = await testDatabase('template0')
const chat = await startChat()
const deployment = await newDeployment({
  databaseUrl: seenByFunctions(url),
  githubWebhookSecret: secret,
  chatUrl: seenByFunctions(chat.url),
})

/** Handlers of this test, beside those of the project. Those write a row in example.repository_activity for each event. */
const handlers: Record<string, string> = {
  fails: `
    export default defineHandler('github.fails', { maxAttempts: 2, baseDelaySeconds: 0 }, () => {
      throw new Error('as told')
    })`,
  blocks: `
    export default defineHandler('github.blocks', {}, async () => {
      const { status } = await fetch(process.env.CHAT_URL ?? '', { method: 'POST' })
      if (status === 503) for (;;);
    })`,
  sleeps: `
    export default defineHandler('github.sleeps', { concurrency: 5, baseDelaySeconds: 0, maxAttempts: 100 }, ({ payload }) =>
      new Promise((resolve) => setTimeout(resolve, (payload as { ms: number }).ms)))`,
}

let bridge: Awaited<ReturnType<typeof startBridge>>
beforeAll(async () => {
  await installAwsLambda(sql, 'at the commit')
  for (const [name, text] of Object.entries(handlers)) {
    await deployment.write(
      `functions/handlers/${name}.ts`,
      `import { defineHandler } from '../../src/index.ts'\n${text}`,
    )
  }
  await deployment.deploy()
  bridge = await startBridge({
    databaseUrl: url,
    endpoint: inject('awsUrl'),
    onError: (error) => console.error(error),
  })
})
afterAll(() => bridge?.stop())

it('is made ready by the deployment: schema, handlers, whom to wake', async () => {
  const [ready] = await sql`
    select
      (select count(*) > 0 from loopless.schema_migration) as "isMigrated",
      (select array_agg(name order by name) from loopless.handler) as handlers,
      (select function_arn from loopless.wake_target) as "wakeTarget"`
  expect(ready).toEqual({
    isMigrated: true,
    handlers: ['announce-issue', 'blocks', 'count-kinds', 'fails', 'record-activity', 'sleeps'],
    wakeTarget: expect.stringMatching(new RegExp(`:function:${deployment.stack}-wake$`)),
  })
})

it('handles at once what a signed webhook publishes, and logs it', async () => {
  const first = await publish('star') // which starts the environments
  await vi.waitFor(async () => {
    expect(await handled(first)).toBe(1)
    expect((await claimedBy('wake')) + (await claimedBy('poll'))).toBe(1)
  }, patience)
  const before = await claimedBy('wake')
  const beganMs = performance.now()
  const id = await publish('star')
  await vi.waitFor(async () => expect(await handled(id)).toBe(1), { ...patience, interval: 20 })
  const ms = performance.now() - beganMs
  console.log(`From the webhook to its handled event: ${ms.toFixed(0)} ms`)
  expect(ms).toBeLessThan(2_000)
  await vi.waitFor(async () => expect(await claimedBy('wake')).toBe(before + 1), patience)
  await vi.waitFor(
    async () => expect(await reports('wake')).toContainEqual(expect.objectContaining({ ended: 'idle' })),
    patience,
  )
  expect(await deployment.log('wake')).toContainEqual(expect.stringMatching(/^REPORT RequestId: /))
})

it('publishes nothing that is not signed', async () => {
  const answer = await deployment.post('github-webhook', signedWebhook('star', {}, 'another secret'))
  expect(answer).toMatchObject({ status: 401, body: expect.stringContaining('X-Hub-Signature-256') })
})

it('tries a handler that fails again, and keeps its event with the dead letters', async () => {
  const id = await publish('fails')
  await vi.waitFor(async () => {
    const dead = await sql`
      select handler, reason, attempts, error_message as message from loopless.dead_letter where event_id = ${id}`
    expect(dead).toEqual([{ handler: 'fails', reason: 'exhausted', attempts: 2, message: 'as told' }])
  }, patience)
  expect(await handled(id)).toBe(1)
})

it('calls helpers for a long backlog', async () => {
  const ids = await publishAll(4_000, { ms: 10 })
  await vi.waitFor(async () => expect(await unhandled(ids)).toBe(0), patience)
  await vi.waitFor(async () => {
    const found = await reports('wake')
    expect(found.some(({ helpers = 0 }) => helpers > 0)).toBe(true)
    expect(found.some((report) => report.helpers === undefined && report.claimed > 0)).toBe(true)
  }, patience)
})

it('keeps an invocation that failed in the queue of failed wakes', async () => {
  const queue = await deployment.output('FailedWakesUrl')
  await deployment.send('wake', { loopless: 'nonsense' })
  const found: unknown[] = []
  await vi.waitFor(async () => {
    found.push(...(await deployment.messages(queue)))
    expect(found).toContainEqual(
      expect.objectContaining({
        requestPayload: { loopless: 'nonsense' },
        requestContext: expect.objectContaining({ condition: 'RetriesExhausted', approximateInvokeCount: 1 }),
        responsePayload: expect.objectContaining({ errorMessage: expect.stringContaining('nonsense') }),
      }),
    )
  }, patience)
})

it('goes on with another poller near the end of its time', async () => {
  await deployment.setTimeoutSeconds('wake', 5)
  do {
    const ids = await publishAll(100, { ms: 500 }) // five at once: 10 s
    await vi.waitFor(async () => {
      if (await isPolled()) return
      // LocalStack loses what is sent to a function in the two seconds after an update.
      await deployment.send('wake', { loopless: 'wake' })
      throw new Error('Expected a poller to have claimed events.')
    }, patience)
    await vi.waitFor(async () => expect(await unhandled(ids)).toBe(0), patience)
    // Unless the scheduled poll was quicker, and handled them all.
  } while (!(await reports('wake')).some(({ ended }) => ended === 'continued'))
})

it('polls by the schedule when nobody is woken', async () => {
  await sql`select loopless.unset_wake()`
  // one that was woken before may look again still
  await vi.waitFor(async () => {
    const [mark] =
      await sql`select last_value <= date_part('epoch', clock_timestamp()) * 1000 as "isOver" from loopless.wake_mark`
    expect(mark).toEqual({ isOver: true })
  }, patience)
  const before = await claimedBy('poll')
  const beganMs = performance.now()
  const id = await publish('star')
  await vi.waitFor(async () => expect(await handled(id)).toBe(1), patience)
  console.log(`Without a wake, by the schedule: ${((performance.now() - beganMs) / 1000).toFixed(0)} s`)
  await vi.waitFor(async () => expect(await claimedBy('poll')).toBeGreaterThan(before), patience)
})

it('loses and repeats nothing of a poll that was killed at its time-out', async () => {
  await deployment.setTimeoutSeconds('poll', 5)
  chat.status = 503
  const ids = [await publish('star'), await publish('blocks'), await publish('star')]
  await vi.waitFor(async () => {
    await deployment.invoke('poll')
    expect((await deployment.log('poll')).join('')).toContain('Task timed out after 5.00 seconds')
  }, patience)
  chat.status = 200
  await vi.waitFor(async () => {
    await deployment.invoke('poll')
    expect(await unhandled(ids)).toBe(0)
  }, patience)
  for (const id of ids) expect(await handled(id)).toBe(1)
  expect(await sql`select from loopless.attempt where event_id = any(${ids})`).toHaveLength(0)
})

it('is removed by serverless remove; the database keeps everything but the function to wake', async () => {
  const before = await sql`select from loopless.event`
  expect((await deployment.invoke('migrate')).payload).toMatchObject({ wake: 'set' })
  await deployment.remove()
  expect(await deployment.status()).toBeUndefined()
  await expect(deployment.invoke('poll')).rejects.toThrow('Function not found')
  expect(await sql`select from loopless.event`).toHaveLength(before.length)
  expect(await sql`select from loopless.wake_target`).toEqual([])
})

/** What a poller logs of itself. */
interface Report {
  readonly claimed: number
  readonly ended?: string
  readonly helpers?: number
}

async function reports(name: string): Promise<Report[]> {
  const lines = await deployment.log(name)
  return lines
    .filter((line) => line.startsWith('{') && line.includes('"message":"Polled."'))
    .map((line): Report => JSON.parse(line))
}

/** How many events the pollers of a function have claimed so far, as they log it. */
async function claimedBy(name: string): Promise<number> {
  return (await reports(name)).reduce((sum, { claimed }) => sum + claimed, 0)
}

/** Publishes by the webhook, and returns the event's id. */
async function publish(kind: string): Promise<string> {
  const { status, body } = await deployment.post(
    'github-webhook',
    signedWebhook(kind, { repository }, secret),
  )
  expect({ status, body }).toMatchObject({ status: 202 })
  return (JSON.parse(body) as { id: string }).id
}

/** Publishes so many at once, for the handler that sleeps. */
function publishAll(count: number, payload: { ms: number }): Promise<string[]> {
  const sleeps = defineEvent<{ ms: number; repository: typeof repository }>('github.sleeps')
  const events = Array.from({ length: count }, () => sleeps({ ...payload, repository }))
  return sql.begin((tx) => publishMany(tx, events))
}

/** How often the transactional handler has handled an event. */
async function handled(id: string): Promise<number> {
  return (await sql`select from example.repository_activity where event_id = ${id}`).length
}

/** How many of these have a handler that is not done. */
async function unhandled(ids: string[]): Promise<number> {
  const [row] = await sql<{ count: number }[]>`
    select count(*)::int as count
    from unnest(${ids}::bigint[]) e (id)
    where not exists (select from example.repository_activity a where a.event_id = e.id)
      or exists (select from loopless.delivery d where d.event_id = e.id)`
  return row?.count ?? ids.length
}

/** Whether a poller is at work. */
async function isPolled(): Promise<boolean> {
  return (await sql`select from loopless.batch where lease is not null and settled_at is null`).length > 0
}

/** A service that a handler asks. */
async function startChat(): Promise<{ url: string; status: number }> {
  const service = { url: '', status: 200 }
  const server = createServer((_, response) => response.writeHead(service.status).end())
  server.listen(0)
  await once(server, 'listening')
  afterAll(() => server.close())
  service.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  return service
}
