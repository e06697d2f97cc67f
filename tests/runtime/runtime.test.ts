import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { signedWebhooks } from '../../infra/local/webhooks.ts'
import { exampleDatabase, webhooks } from '../support/examples.ts'
import { type Invocation, type LambdaFunction, lambdaFunction } from '../support/lambda-function.ts'
import { packageFunctions } from '../support/packaged-functions.ts'
import { startProxy } from '../support/proxy.ts'

const secret = 'the secret of a test'
/** How long an environment is frozen where it matters. */
const freezeSeconds = Number(process.env['FREEZE_SECONDS'] || 3)
const warmInvocations = 20
/** What a cold start may take on a machine that does nothing else, and on how many starts it may have been busy. */
const mostInitMs = 200
const mostStarts = 5
/** What an invocation may take longer that has to open a session: a second to notice, and the opening. */
const mostReopeningMs = 1_500

const { url, sql, publish } = await exampleDatabase()
const proxy = await startProxy(url)
afterAll(() => proxy.close())
const chat = await startChat()
const functions = await packageFunctions({
  DATABASE_URL: proxy.url,
  GITHUB_WEBHOOK_SECRET: secret,
  CHAT_URL: chat.url,
})

const issues = webhooks<{ issue: { body: string | null } }>('issues', 'opened').filter(
  ({ issue }) => issue.body !== null,
)
const scheduled = { source: 'aws.events', 'detail-type': 'Scheduled Event', detail: {} }
/** An invocation of each function as it is deployed to be invoked. */
const events: Record<string, () => unknown> = {
  poll: () => scheduled,
  wake: () => ({ loopless: 'wake' }),
  maintain: () => scheduled,
  migrate: () => ({}),
  'github-webhook': webhookEvent,
}

const started = new Set<LambdaFunction>()
beforeEach(async () => {
  proxy.judge(() => 'forward')
  chat.answer((response) => response.end())
  chat.keys.length = 0
  expect(await invoke(start('poll'))).toMatchObject({ drained: true }) // what other tests have published
})
afterEach(async () => {
  await Promise.all([...started].map((lambda) => lambda.shutDown()))
  started.clear()
})

/** A function that no environment was made for yet. */
function start(name: string, environment?: Record<string, string>): LambdaFunction {
  const deployed = functions[name]
  if (!deployed) throw new Error(`Expected serverless.yml to have a function ${name}.`)
  const lambda = lambdaFunction(deployed, environment)
  started.add(lambda)
  return lambda
}

/** Invokes it and expects an answer; what it came to. */
async function invoke(
  lambda: LambdaFunction,
  event: unknown = scheduled,
): Promise<Record<string, unknown> & Pick<Invocation, 'ms' | 'initMs'>> {
  const invocation = await lambda.invoke(event)
  if ('payload' in invocation) return { ...(invocation.payload as object), ...invocation }
  throw new Error(`${invocation.errorType}: ${invocation.errorMessage}\n${lambda.log}`)
}

/** The shortest of several cold starts; one that is short enough ends them. */
async function bestInitMs(
  name: string,
  event: () => unknown,
  firstMs = Number.POSITIVE_INFINITY,
): Promise<number> {
  let bestMs = firstMs
  for (let starts = 1; starts < mostStarts && bestMs > mostInitMs; starts++) {
    const { initMs = bestMs } = await invoke(start(name), event())
    bestMs = Math.min(bestMs, initMs)
  }
  return bestMs
}

describe('each packaged function', () => {
  const figures: Record<string, Record<string, string>> = {}
  afterAll(() => {
    console.log('\nUnder the runtime interface client, on this machine:')
    console.table(figures)
  })

  it('has an invocation here', () => {
    expect(Object.keys(events).sort()).toEqual(Object.keys(functions).sort())
  })

  it.each(Object.keys(events))('%s is at most 500 KB of code', (name) => {
    expect(functions[name]?.codeBytes).toBeGreaterThan(1_000)
    expect(functions[name]?.codeBytes).toBeLessThanOrEqual(500_000)
  })

  it.each(Object.entries(events))(
    '%s starts, answers, and answers again in the same process',
    async (name, event) => {
      const lambda = start(name)
      const cold = await invoke(lambda, event())
      const { pid } = lambda
      const warm: number[] = []
      for (let count = 0; count < warmInvocations; count++) {
        const { ms, initMs } = await invoke(lambda, event())
        expect(initMs).toBeUndefined()
        warm.push(ms)
      }
      expect(lambda.pid).toBe(pid)
      const initMs = await bestInitMs(name, event, cold.initMs)
      expect(initMs).toBeLessThanOrEqual(mostInitMs)
      warm.sort((one, other) => one - other)
      figures[name] = {
        'zip, KB': kilobytes(functions[name]?.zipBytes),
        'code, KB': kilobytes(functions[name]?.codeBytes),
        'init, ms (best)': milliseconds(initMs),
        'first invocation, ms': milliseconds(cold.ms),
        'warm, ms (median)': milliseconds(warm[Math.floor(warmInvocations / 2)]),
      }
    },
  )
})

it('handles what a signed webhook published, warm with the session of the cold start', async () => {
  const webhook = start('github-webhook')
  const poll = start('poll')
  const publishAndPoll = async (): Promise<number[]> => {
    expect(await invoke(webhook, webhookEvent())).toMatchObject({ statusCode: 202 })
    expect(await invoke(poll)).toMatchObject({ claimed: 1, drained: true })
    return sessionsOf('poll')
  }
  const cold = await publishAndPoll()
  const warm = await publishAndPoll()
  expect(cold).toEqual(expect.arrayContaining(warm))
})

it('loses and repeats nothing of an invocation that was killed at its time-out', async () => {
  const id = await publish('github.star.created', webhooks('star', 'created')[0])
  const poll = start('poll')
  let held = 0
  proxy.judge(({ from, type, text }) => {
    if (from === 'server' || type !== 'P' || !text.includes('loopless.settle(')) return 'forward'
    held++
    return 'hold'
  })
  const invocation = await poll.invoke(scheduled, { timeoutSeconds: 5 })
  expect(invocation).toMatchObject({
    errorType: 'Sandbox.Timedout',
    errorMessage: expect.stringContaining('Task timed out after 5.00 seconds'),
  })
  expect(held).toBe(1)
  expect(poll.pid).toBeUndefined()

  proxy.judge(() => 'forward')
  await invokeUntil(poll, () => isSettled(id)) // when the lease has run out
  expect(await activityOf(id)).toBe(1)
  expect(await attemptsOf(id)).toEqual([])
})

describe('an error', () => {
  it('of a handler is tried again, and costs nothing but that', async () => {
    const id = await publish('github.issues.opened', issues[0])
    const poll = start('poll')
    chat.answer((response) => response.writeHead(500).end('out of order'))
    expect(await invoke(poll)).toMatchObject({ claimed: 1, succeeded: 2, retried: 1 })
    const { pid } = poll
    chat.answer((response) => response.end())
    await invokeUntil(poll, () => isSettled(id))
    expect(poll.pid).toBe(pid)
    expect(await attemptsOf(id)).toEqual(['announce-issue: The chat answered 500: out of order'])
  })

  it('of the function names its class and the line of the source; the environment goes on', async () => {
    const id = await publish('github.star.created', webhooks('star', 'created')[0])
    const poll = start('poll')
    await invoke(start('maintain')) // another function's session is not cut
    proxy.judge(() => 'cut')
    const failed = await poll.invoke(scheduled)
    expect(failed).toMatchObject({ errorType: expect.stringMatching(/Error$/) })
    expect('trace' in failed && failed.trace?.join('\n')).toMatch(/functions\/edge\/\w+\.ts:\d+/)
    const { pid } = poll
    proxy.judge(() => 'forward')
    expect(await invoke(poll)).toMatchObject({ claimed: 1, drained: true })
    expect(poll.pid).toBe(pid)
    expect(await activityOf(id)).toBe(1)
  })

  it('of its settings ends the init, and says which is missing', async () => {
    const webhook = start('github-webhook', { GITHUB_WEBHOOK_SECRET: '' })
    expect(await webhook.invoke(webhookEvent())).toMatchObject({
      errorMessage: expect.stringContaining('GITHUB_WEBHOOK_SECRET'),
    })
    expect(webhook.pid).toBeUndefined()
  })
})

describe('SIGTERM', () => {
  it('lets end what runs, and leaves the rest to the next environment at once', async () => {
    const running = Promise.withResolvers<ServerResponse>()
    chat.answer(running.resolve)
    const first = await publish('github.issues.opened', issues[0])
    const poll = start('poll')
    const invocation = invoke(poll)
    const answer = await running.promise
    await poll.terminate()
    const second = await publish('github.issues.opened', issues[0])
    chat.answer((response) => response.end())
    answer.end()
    expect(await invocation).toMatchObject({ claimed: 1, retried: 0, drained: false })
    await poll.shutDown()
    expect(await isSettled(first)).toBe(false)

    expect(await invoke(poll)).toMatchObject({ drained: true, repaired: 0 })
    for (const id of [first, second]) {
      expect(await isSettled(id)).toBe(true)
      expect(await activityOf(id)).toBe(1)
    }
    expect(chat.keys).toEqual([`${first}:announce-issue`, `${second}:announce-issue`])
  })

  it('between two invocations ends nothing but the environment', async () => {
    const poll = start('poll')
    await invoke(poll)
    await poll.terminate()
    await poll.shutDown()
    const id = await publish('github.star.created', webhooks('star', 'created')[0])
    expect(await invoke(poll)).toMatchObject({ claimed: 1, drained: true })
    expect(await activityOf(id)).toBe(1)
  })
})

describe('an environment that was frozen', () => {
  it.each<[string, { isFresh: boolean; cut: () => unknown }]>([
    ['goes on with its session', { isFresh: false, cut: () => {} }],
    [
      'opens a session when the server has ended its own',
      {
        isFresh: true,
        cut: () => sql`
          select pg_terminate_backend(pid, 10000) from pg_stat_activity
          where datname = current_database() and application_name like 'loopless-ci-%'`,
      },
    ],
    ['opens a session when its own is gone and nobody says so', { isFresh: true, cut: () => proxy.forget() }],
  ])('%s', async (_, { isFresh, cut }) => {
    const poll = start('poll')
    const webhook = start('github-webhook')
    await invoke(webhook, webhookEvent())
    await invoke(poll)
    const usual = [await invoke(webhook, webhookEvent()), await invoke(poll)]
    const pids = [poll.pid, webhook.pid]
    const before = await sessionsOf('poll')
    await cut()
    await sleep(freezeSeconds * 1000)

    const thawed = [await invoke(webhook, webhookEvent()), await invoke(poll)]
    expect(thawed).toMatchObject([{ statusCode: 202 }, { claimed: 1, drained: true }])
    const longerMs = thawed.map(({ ms }, at) => ms - (usual[at]?.ms ?? 0))
    expect(Math.max(...longerMs)).toBeLessThan(mostReopeningMs)
    expect([poll.pid, webhook.pid]).toEqual(pids)
    const after = await sessionsOf('poll')
    expect(after.filter((session) => !before.includes(session))).toHaveLength(isFresh ? 1 : 0)
  })
})

/** Invokes it again and again, as its schedule does, until something is so. */
async function invokeUntil(lambda: LambdaFunction, isSo: () => Promise<boolean>): Promise<void> {
  for (;;) {
    await invoke(lambda)
    if (await isSo()) return
    await sleep(200)
  }
}

async function isSettled(id: string): Promise<boolean> {
  const [row] = await sql<{ isSettled: boolean }[]>`
    select exists (select from example.repository_activity where event_id = ${id})
      and not exists (select from loopless.delivery where event_id = ${id})
      and not exists (select from loopless.batch where settled_at is null) as "isSettled"`
  return row?.isSettled ?? false
}

/** How often the transactional handler's effect is there. */
async function activityOf(id: string): Promise<number> {
  return (await sql`select from example.repository_activity where event_id = ${id}`).length
}

async function attemptsOf(id: string): Promise<string[]> {
  const rows = await sql<{ handler: string; message: string }[]>`
    select handler, error_message as message from loopless.attempt where event_id = ${id} order by id`
  return rows.map(({ handler, message }) => `${handler}: ${message}`)
}

/** Processes of the server that serve a function. */
async function sessionsOf(name: string): Promise<number[]> {
  const rows = await sql<{ pid: number }[]>`
    select pid from pg_stat_activity
    where datname = current_database() and application_name = ${functions[name]?.functionName ?? ''}`
  return rows.map(({ pid }) => pid)
}

/** A request of a function URL or an HTTP API: a new, signed delivery of a real webhook. */
function webhookEvent(): unknown {
  const [{ headers, body } = { headers: {}, body: '' }] = signedWebhooks(secret)
  return {
    version: '2.0',
    rawPath: '/webhooks/github',
    headers,
    requestContext: { http: { method: 'POST', path: '/webhooks/github' } },
    body: Buffer.from(body).toString('base64'),
    isBase64Encoded: true,
  }
}

/** A chat for announcements that answers as it is told. */
async function startChat() {
  let reply = (response: ServerResponse): unknown => response.end()
  const keys: string[] = []
  const server = createServer((request, response) => {
    keys.push(String(request.headers['idempotency-key']))
    reply(response)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  afterAll(() => server.close())
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    answer(next: typeof reply) {
      reply = next
    },
    /** The idempotency keys of what it was sent. */
    keys,
  }
}

function kilobytes(bytes = 0): string {
  return (bytes / 1000).toFixed(0)
}

function milliseconds(ms = 0): string {
  return ms.toFixed(ms < 10 ? 1 : 0)
}
