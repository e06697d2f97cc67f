import { execFile } from 'node:child_process'
import { createHmac, randomUUID } from 'node:crypto'
import { readFile, rm, stat } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { buildFunctions } from '../esbuild.config.mjs'
import announceIssue from '../functions/handlers/announce-issue.ts'
import countKinds from '../functions/handlers/count-kinds.ts'
import recordActivity from '../functions/handlers/record-activity.ts'
import { mendedMarker } from '../infra/local/mend-driver.mjs'
import { defineHandlers, register } from '../src/index.ts'
import { exampleDatabase, webhooks } from './support/examples.ts'
import { startLambda } from './support/lambda.ts'
import { startProxy } from './support/proxy.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const outdir = `.esbuild/functions-${randomUUID()}`
const { url, sql, publish } = await exampleDatabase()

const lambda = await startLambda()
afterAll(() => lambda.close())

type Answer = Record<string, unknown>
type LambdaFunction = (event: object, context: { getRemainingTimeInMillis(): number }) => Promise<Answer>

beforeAll(async () => {
  Object.assign(process.env, {
    DATABASE_URL: url,
    GITHUB_WEBHOOK_SECRET: 'a secret',
    KEEP_EVENT_DAYS: '7',
    KEEP_ATTEMPT_DAYS: '30',
    KEEP_DEAD_LETTER_DAYS: '30',
    LINGER_MS: '0',
    MAX_POLLERS: '4',
    AWS_LAMBDA_FUNCTION_NAME: 'loopless-test',
    AWS_REGION: 'eu-central-1',
    AWS_ACCESS_KEY_ID: 'a',
    AWS_SECRET_ACCESS_KEY: 'a',
    AWS_ENDPOINT_URL_LAMBDA: lambda.url,
  })
  await buildFunctions({ outdir })
  for (const method of ['log', 'info', 'warn'] as const) vi.spyOn(console, method).mockReturnValue()
})
afterAll(() => rm(join(root, outdir), { recursive: true, force: true }))

const pathOf = (name: string): string => join(root, outdir, `${name}.cjs`)

/** Loads a built function, as Lambda does, and invokes it. */
function invoke(name: string, event: object = {}, ms = 10_000): Promise<Answer> {
  const { handler } = createRequire(import.meta.url)(pathOf(name)) as { handler: LambdaFunction }
  return handler(event, { getRemainingTimeInMillis: () => ms })
}

/** Has another copy of poll, with another database, while `use` runs. */
async function withDatabase(databaseUrl: string, use: () => Promise<void>): Promise<void> {
  const { cache } = createRequire(import.meta.url)
  const usual = cache[pathOf('poll')]
  delete cache[pathOf('poll')]
  process.env['DATABASE_URL'] = databaseUrl
  try {
    await use()
  } finally {
    process.env['DATABASE_URL'] = url
    cache[pathOf('poll')] = usual
  }
}

/** Ends the sessions of the functions, as the server does while an environment is frozen. */
async function endSessions(): Promise<void> {
  await sql`
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name = 'loopless-test'`
}

describe('poll', () => {
  it('has the handlers that the build found, and handles what was published', async () => {
    const [star] = webhooks('star', 'created')
    const id = await publish('github.star.created', star)
    expect(await invoke('poll')).toMatchObject({ claimed: 1, succeeded: 2, drained: true, nextDueAt: null })
    expect(await sql`select repository from example.repository_activity where event_id = ${id}`).toEqual([
      { repository: 'Codertocat/Hello-World' },
    ])
  })

  it('decides by the clock of the database, whatever the machine has', async () => {
    await publish('github.ping', {})
    await sql`select loopless.publish('order.reminded', '{}', due_at => clock_timestamp() + interval '1 hour')`
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 7_200_000 })
    try {
      expect(await invoke('poll')).toMatchObject({ claimed: 1, drained: true })
    } finally {
      vi.useRealTimers()
    }
    const [batch] = await sql`
      select claimed_at between clock_timestamp() - interval '1 minute' and clock_timestamp() as "isNow"
      from loopless.batch order by id desc limit 1`
    expect(batch).toEqual({ isNow: true })
    await sql`delete from loopless.delivery`
    await sql`delete from loopless.event where due_at is not null`
  })

  it('starts nothing any more after SIGTERM', async () => {
    await publish('github.ping', {})
    const script = `
      const { handler } = require(${JSON.stringify(pathOf('poll'))})
      process.emit('SIGTERM')
      handler({}, { getRemainingTimeInMillis: () => 10_000 }).then(() => process.exit())`
    const { stdout } = await promisify(execFile)(process.execPath, ['--eval', script])
    expect(JSON.parse(stdout)).toMatchObject({ claimed: 0, polls: 0, drained: false })
    expect(await invoke('poll')).toMatchObject({ claimed: 1, drained: true })
  })

  it('goes on after its session was ended between two invocations', async () => {
    await invoke('poll')
    await endSessions()
    await publish('github.ping', {})
    expect(await invoke('poll')).toMatchObject({ claimed: 1, drained: true })
  })

  it('opens a session within a second or so when its own is gone and nobody says so', async () => {
    const proxy = await startProxy(url)
    onTestFinished(() => proxy.close())
    const pollOne = async (): Promise<number> => {
      await publish('github.ping', {})
      const beganMs = performance.now()
      expect(await invoke('poll')).toMatchObject({ claimed: 1, drained: true })
      return performance.now() - beganMs
    }
    await withDatabase(proxy.url, async () => {
      await pollOne()
      const usualMs = await pollOne()
      proxy.forget()
      expect((await pollOne()) - usualMs).toBeLessThan(1_500)
    })
  })

  it('starts nothing when its time is over', async () => {
    await publish('github.ping', {})
    expect(await invoke('poll', {}, 200)).toMatchObject({ claimed: 0, drained: false })
    expect(await invoke('poll')).toMatchObject({ claimed: 1, drained: true })
  })

  it('claims nothing and says why when other handlers are registered', async () => {
    await register(sql, defineHandlers({}), new Date())
    await publish('github.ping', {})
    expect(await invoke('poll')).toEqual({ refused: expect.stringContaining('handler') })

    // by their file names
    await register(
      sql,
      defineHandlers({
        'announce-issue': announceIssue,
        'count-kinds': countKinds,
        'record-activity': recordActivity,
      }),
      new Date(),
    )
    expect(await invoke('poll')).toMatchObject({ claimed: 1 })
  })

  it('waits for a connection as long as it is set, and says what to look at', async () => {
    const proxy = await startProxy(url)
    onTestFinished(() => proxy.close())
    proxy.judge(() => 'hold')
    vi.stubEnv('DATABASE_CONNECT_TIMEOUT_SECONDS', '1')
    onTestFinished(() => void vi.unstubAllEnvs())
    await withDatabase(proxy.url, async () => {
      const beganMs = performance.now()
      await expect(invoke('poll')).rejects.toThrow(/CONNECT_TIMEOUT.* zero capacity/)
      expect(performance.now() - beganMs).toBeLessThan(5_000)
    })
  })

  it('throws when the database cannot be reached', async () => {
    await withDatabase('postgres://nobody@127.0.0.1:1/nothing', async () => {
      await expect(invoke('poll')).rejects.toThrow('ECONNREFUSED')
    })
  })
})

describe('wake', () => {
  it('handles what was published, and goes idle', async () => {
    await publish('github.ping', {})
    expect(await invoke('wake', { loopless: 'wake' })).toMatchObject({
      ended: 'idle',
      claimed: 1,
      helpers: 0,
    })
  })

  it('invokes itself, asynchronously, to go on where its time ends', async () => {
    const open = await sql.reserve()
    await open`select loopless.set_wake(clock_timestamp(), 'a-function')`
    await open`begin`
    await open`select loopless.publish('github.ping', '{}')`
    lambda.invocations.length = 0
    expect(await invoke('wake', { loopless: 'wake' }, 300)).toMatchObject({ ended: 'continued' })
    expect(lambda.invocations).toEqual([
      expect.objectContaining({
        functionName: 'loopless-test',
        invocationType: 'Event',
        payload: '{"loopless":"continue"}',
      }),
    ])
    await open`commit`
    open.release()
    expect(await invoke('wake', { loopless: 'continue' })).toMatchObject({ ended: 'idle', claimed: 1 })
  })

  it.each([429, 500])('leaves the rest to the next wake when Lambda answers %i', async (status) => {
    const open = await sql.reserve()
    await open`begin`
    await open`select loopless.publish('github.ping', '{}')`
    const headers: Record<string, string> =
      status === 429 ? { 'x-amzn-errortype': 'TooManyRequestsException' } : {}
    lambda.answer(() => ({ status, headers, body: '{"message":"Rate exceeded"}' }))
    vi.mocked(console.warn).mockClear()
    expect(await invoke('wake', { loopless: 'wake' }, 300)).toMatchObject({ ended: 'stopped' })
    expect(console.warn).toHaveBeenCalledTimes(status === 429 ? 0 : 1)
    lambda.answer(() => ({ status: 202 }))
    await open`rollback`
    open.release()
  })

  it('leaves the rest to the next wake when Lambda does not answer, within two seconds', async () => {
    const open = await sql.reserve()
    await open`begin`
    await open`select loopless.publish('github.ping', '{}')`
    lambda.answer(() => 'hang')
    onTestFinished(() => lambda.answer(() => ({ status: 202 })))
    const beganMs = performance.now()
    expect(await invoke('wake', { loopless: 'wake' }, 300)).toMatchObject({ ended: 'stopped' })
    expect(performance.now() - beganMs).toBeLessThan(2_000)
    const [mark] = await open`select last_value from loopless.wake_mark`
    expect(mark).toEqual({ last_value: '0' })
    await open`rollback`
    open.release()
  })

  it('only helps when that is what it is invoked for', async () => {
    await publish('github.ping', {})
    expect(await invoke('wake', { loopless: 'help' })).toMatchObject({ drained: true, claimed: 1 })
  })

  it.each([{}, null, 'wake', { loopless: 'sleep' }, { source: 'aws.events' }])(
    'refuses any other payload: %o',
    async (payload) => {
      await expect(invoke('wake', payload as object)).rejects.toThrow(
        /Expected the payload .* invoke the function poll/,
      )
    },
  )
})

describe('maintain', () => {
  it('removes what was settled more than a week ago, and says what', async () => {
    await invoke('poll')
    const events = await sql`select from loopless.event`
    await sql`update loopless.event set published_at = published_at - interval '8 days'`
    await sql`update loopless.batch set settled_at = settled_at - interval '8 days' where settled_at is not null`
    expect(await invoke('maintain', {}, 60_000)).toMatchObject({
      events: events.length,
      deadLetters: 0,
      isComplete: true,
    })
    expect(await sql`select from loopless.event`).toHaveLength(0)
  })

  it('stops in time', async () => {
    expect(await invoke('maintain', {}, 0)).toMatchObject({ events: 0, isComplete: false })
  })
})

describe('github-webhook', () => {
  const request = (payload: unknown, headers: Record<string, string> = {}) => {
    const body = typeof payload === 'string' ? payload : JSON.stringify(payload)
    const signature = createHmac('sha256', 'a secret').update(body).digest('hex')
    return {
      version: '2.0',
      body,
      isBase64Encoded: false,
      headers: {
        'content-type': 'application/json',
        'x-github-event': 'issues',
        'x-github-delivery': randomUUID(),
        'x-hub-signature-256': `sha256=${signature}`,
        ...headers,
      },
    }
  }
  const idOf = (answer: Answer): string => (JSON.parse(answer['body'] as string) as { id: string }).id

  it('publishes a signed delivery and answers 202 with the id of the event', async () => {
    const [issue] = webhooks('issues', 'opened')
    const answer = await invoke('github-webhook', request(issue))
    expect(answer).toMatchObject({ statusCode: 202, headers: { 'content-type': 'application/json' } })
    expect(await sql`select name, payload from loopless.event where id = ${idOf(answer)}`).toEqual([
      { name: 'github.issues.opened', payload: issue },
    ])
  })

  it('publishes a delivery once, whether it comes again or twice at once', async () => {
    const delivery = request({ action: 'opened' })
    const [one, other] = await Promise.all([
      invoke('github-webhook', delivery),
      invoke('github-webhook', delivery),
    ])
    const again = await invoke('github-webhook', delivery)
    expect([other, again]).toEqual([one, one])
    expect(await sql`select from loopless.event where id = ${idOf(again)}`).toHaveLength(1)
    expect(await sql`select from loopless.dedupe_key where event_id = ${idOf(again)}`).toHaveLength(1)
  })

  it('publishes although its session was ended while it was frozen', async () => {
    await invoke('github-webhook', request({}))
    await endSessions()
    expect(await invoke('github-webhook', request({}))).toMatchObject({ statusCode: 202 })
  })

  it.each([
    [401, request({}, { 'x-hub-signature-256': 'sha256=0' })],
    [401, { ...request({}), headers: {} }],
    [400, request({}, { 'x-github-event': '' })],
    [400, request('{')],
    [413, request({ text: 'x'.repeat(1024 * 1024) })],
    [415, request({}, { 'content-type': 'text/plain' })],
  ])('answers %i, with the reason, and publishes nothing', async (statusCode, event) => {
    const before = await sql`select from loopless.event`
    const answer = await invoke('github-webhook', event)
    expect(answer).toMatchObject({ statusCode })
    expect(JSON.parse(answer['body'] as string)).toEqual({ error: expect.stringMatching(/^Expected .*\.$/) })
    expect(await sql`select from loopless.event`).toHaveLength(before.length)
  })

  it('answers 413 for a payload that grows past the limit as JSON', async () => {
    await sql`alter database ${sql((await sql`select current_database() as name`)[0]?.['name'])} set loopless.max_payload_bytes = 1000`
    await endSessions()
    expect(await invoke('github-webhook', request({ text: 'x'.repeat(1000) }))).toMatchObject({
      statusCode: 413,
    })
  })
})

describe('the bundles', () => {
  it.each(['poll', 'wake', 'maintain', 'migrate', 'github-webhook'])(
    '%s is small, whole and has the mended driver',
    async (name) => {
      const text = await readFile(pathOf(name), 'utf8')
      expect((await stat(pathOf(name))).size).toBeLessThan(500_000)
      expect(text).toContain(mendedMarker)
      const required = [...text.matchAll(/require\("([^"]+)"\)/g)].map(([, id = '']) =>
        id.replace(/^node:/, ''),
      )
      // the SDK does without this one where it is not there
      const needed = required.filter((id) => id !== '@aws-sdk/signature-v4-crt')
      const builtin = needed.filter((id) => createRequire(import.meta.url).resolve.paths(id) === null)
      expect(needed).toEqual(builtin)
    },
  )

  it('keep the names of error classes', async () => {
    expect(await readFile(pathOf('poll'), 'utf8')).toMatch(/"LeaseLostError"/)
  })
})
