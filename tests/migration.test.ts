import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer as createHttpServer } from 'node:http'
import { createRequire } from 'node:module'
import { type AddressInfo, createServer, connect as openSocket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it, vi } from 'vitest'
import { buildFunctions } from '../esbuild.config.mjs'
import { installAwsLambda } from '../infra/local/aws-lambda.ts'
import { readMigrations } from '../src/db/migrate.ts'
import { connect, defineHandlers, migrate, register, type Sql } from '../src/index.ts'
import { as, testRoles } from './support/roles.ts'
import { secretsManager } from './support/secrets-manager.ts'
import { startServer } from './support/server.ts'
import { withSession } from './support/session.ts'

// The built function, invoked as CloudFormation does and by hand, against a database as it was before.

const root = fileURLToPath(new URL('..', import.meta.url))
const outdir = `.esbuild/functions-${randomUUID()}`
const migrations = readMigrations()
const newest = migrations.at(-1)?.name
const wakeFunction = 'arn:aws:lambda:eu-west-3:123456789012:function:loopless-test-wake'

interface Answer {
  Status: string
  Reason?: string
  Data?: Record<string, string>
}
type LambdaFunction = (
  event: unknown,
  context: { getRemainingTimeInMillis(): number },
) => Promise<Record<string, unknown> | undefined>

const roles = testRoles()
const manager = await secretsManager()
const answers: Answer[] = []
const bucket = createHttpServer(async (request, response) => {
  answers.push(JSON.parse(await text(request)))
  response.end()
})
bucket.listen(0, '127.0.0.1')
await once(bucket, 'listening')
afterAll(() => bucket.close())

const made: string[] = []
const onServer = <Result>(run: (sql: Sql) => Promise<Result>): Promise<Result> =>
  withSession(inject('serverUrl'), run)
afterAll(() =>
  onServer(async (sql) => {
    for (const name of made) await sql`drop database ${sql(name)} with (force)`
  }),
)

let url: string
let sql: Sql
beforeEach(async () => {
  const name = `loopless_${randomUUID().replaceAll('-', '')}`
  made.push(name)
  await onServer((server) => server`create database ${server(name)}`)
  const database = new URL(inject('serverUrl'))
  database.pathname = `/${name}`
  url = database.href
  sql = connect(url, { max: 4 })
  answers.length = 0
  useDatabase(url)
})
afterEach(async () => {
  await sql.end({ timeout: 1 })
  vi.unstubAllEnvs()
})
beforeAll(async () => {
  await buildFunctions({ outdir })
  for (const method of ['log', 'info', 'warn', 'error'] as const) vi.spyOn(console, method).mockReturnValue()
})
afterAll(() => rm(join(root, outdir), { recursive: true, force: true }))

function useDatabase(databaseUrl: string): void {
  for (const [name, value] of Object.entries({
    DATABASE_URL: databaseUrl,
    PUBLISHER_ROLE: roles.names.publisher,
    POLLER_ROLE: roles.names.poller,
    VIEWER_ROLE: roles.names.viewer,
  }))
    vi.stubEnv(name, value)
}

/** A function in a new environment, as Lambda makes one. */
function load(name: string): LambdaFunction {
  const require = createRequire(import.meta.url)
  const path = join(root, outdir, `${name}.cjs`)
  delete require.cache[path]
  return (require(path) as { handler: LambdaFunction }).handler
}

const invoke = (event: unknown = {}, ms = 300_000) =>
  load('migrate')(event, { getRemainingTimeInMillis: () => ms })

/** As CloudFormation does; resolves to what it is answered. */
async function deploy(
  RequestType: 'Create' | 'Update' | 'Delete',
  ms = 300_000,
): Promise<Answer | undefined> {
  const { port } = bucket.address() as AddressInfo
  const request = {
    RequestType,
    ResponseURL: `http://127.0.0.1:${port}/`,
    StackId: 'a stack',
    RequestId: randomUUID(),
    LogicalResourceId: 'Migration',
    ...(RequestType !== 'Create' && { PhysicalResourceId: 'loopless' }),
  }
  await invoke(request, ms)
  return answers.at(-1)
}

const schemaOf = async () =>
  (await sql`select name from loopless.schema_migration order by version`).map(({ name }) => name)
const registered = async () => (await sql`select handler_set from loopless.bus`)[0]?.['handler_set']

describe('migrate', () => {
  it('makes an empty database ready for the functions, and tells what it did', async () => {
    const report = await invoke()
    expect(report).toMatchObject({
      schemaVersion: newest,
      applied: migrations.map(({ name }) => name),
      handlers: ['announce-issue', 'count-kinds', 'record-activity'],
      roles: [{ part: 'publisher' }, { part: 'poller' }, { part: 'viewer' }],
      wake: 'off',
    })
    expect(await registered()).toBe(report?.['handlerSet'])
  })

  it('changes nothing the second time', async () => {
    const first = await invoke()
    expect(await invoke('')).toEqual({
      ...first,
      applied: [],
      roles: (['publisher', 'poller', 'viewer'] as const).map((part) => ({
        part,
        name: roles.names[part],
        isCreated: false,
        granted: [],
      })),
    })
  })

  it('makes roles that the functions can do their work with', async () => {
    await invoke()
    await roles.letIn(...Object.values(roles.names))
    vi.stubEnv('GITHUB_WEBHOOK_SECRET', 'a secret')
    await withSession(as(roles.names.publisher, url), async (publisher) => {
      const payload = { repository: { full_name: 'loopless/loopless' } }
      await publisher`select loopless.publish('github.star.created', ${publisher.json(payload)}::json)`
    })
    vi.stubEnv('DATABASE_URL', as(roles.names.poller, url))
    const poll = load('poll')
    expect(await poll({}, { getRemainingTimeInMillis: () => 30_000 })).toMatchObject({
      claimed: 1,
      succeeded: 2,
    })
    expect(await sql`select repository from example.repository_activity`).toEqual([
      { repository: 'loopless/loopless' },
    ])
  })

  it('answers ten at once, and applies each migration once', async () => {
    const runs = Array.from({ length: 10 }, () => invoke())
    const reports = await Promise.all(runs)
    expect(reports.flatMap((report) => report?.['applied']).sort()).toEqual(
      migrations.map(({ name }) => name),
    )
    expect(await schemaOf()).toHaveLength(migrations.length)
  })

  it('throws what is wrong, when a person invokes it', async () => {
    vi.stubEnv('DATABASE_AUTH', 'iam')
    await expect(invoke()).rejects.toThrow(/^Expected DATABASE_HOST to be set/)
  })
})

describe('migrate, for CloudFormation', () => {
  it('brings an older schema up to date', async () => {
    await migrate(sql, migrations.slice(0, 5))
    const [event] = await sql`select loopless.publish('github.ping', '{}') as id`
    expect(await deploy('Update')).toMatchObject({
      Status: 'SUCCESS',
      Data: { SchemaVersion: newest, HandlerSet: await registered() },
    })
    expect(await sql`select id from loopless.event`).toEqual([{ id: event?.['id'] }])
  })

  it('answers why a migration failed, and leaves the schema and the handlers as they were', async () => {
    await migrate(sql, migrations.slice(0, 5))
    const before = defineHandlers({})
    await register(sql, before, new Date())
    await sql`create table loopless.wake_target (mine int)`
    expect(await deploy('Update')).toMatchObject({
      Status: 'FAILED',
      Reason: 'Migration 0006_create_wake failed and was rolled back: relation "wake_target" already exists',
    })
    expect(await schemaOf()).toEqual(migrations.slice(0, 5).map(({ name }) => name))
    expect(await registered()).toBe(before.hash)
    expect(await sql`select to_regclass('loopless.wake_failure') as other`).toEqual([{ other: null }])
  })

  it('leaves the handlers as they were when anything else fails', async () => {
    await invoke()
    const before = defineHandlers({})
    await register(sql, before, new Date())
    await sql`drop schema example cascade`
    await sql`create view public.blocker as select 1`
    await sql`create schema example`
    await sql`create view example.repository_activity as select 1 as mine`
    expect(await deploy('Update')).toMatchObject({
      Status: 'FAILED',
      Reason: expect.stringContaining('not a table'),
    })
    expect(await registered()).toBe(before.hash)
  })

  it('leaves a newer schema as it is and registers its handlers, as when a deployment is rolled back', async () => {
    await invoke()
    const newer = { version: migrations.length + 1, name: '9999_of_the_next_version', text: 'select 1' }
    await migrate(sql, [...migrations, newer])
    await register(sql, defineHandlers({}), new Date())
    const answer = await deploy('Update')
    expect(answer).toMatchObject({ Status: 'SUCCESS', Data: { SchemaVersion: newer.name } })
    expect(await registered()).toBe(answer?.Data?.['HandlerSet'])
  })

  it('answers in time when it must wait for too long, and lets go of what it waited for', async () => {
    await withSession(url, async (other) => {
      await other`select pg_advisory_lock(1280262992, 2)`
      expect(await deploy('Create', 20_000)).toMatchObject({
        Status: 'FAILED',
        Reason: expect.stringMatching(/time of this function ended/),
      })
      const waiting = () =>
        other`select from pg_stat_activity where datname = current_database() and application_name = 'loopless-migrate'`
      while ((await waiting()).length > 0);
    })
    expect(await sql`select to_regnamespace('loopless') as schema`).toEqual([{ schema: null }])
  })

  it('answers what to do when the database refuses it', async () => {
    const refused = new URL(url)
    refused.pathname = '/there_is_none'
    vi.stubEnv('DATABASE_URL', refused.href)
    expect(await deploy('Create')).toMatchObject({
      Status: 'FAILED',
      Reason: expect.stringContaining('There is no such database: check DATABASE_NAME'),
    })
  })

  it('answers that the database could not be reached, when it answers nobody for long', async () => {
    vi.stubEnv('DATABASE_URL', 'postgres://nobody@127.0.0.1:1/nothing')
    expect(await deploy('Create', 16_500)).toMatchObject({
      Status: 'FAILED',
      Reason: expect.stringMatching(
        /^The database could not be reached before the time of this function ended\.$/,
      ),
    })
  })

  it('deletes nothing with the stack, and answers without the database', async () => {
    await invoke()
    vi.stubEnv('WAKE_FUNCTION_ARN', wakeFunction)
    expect(await deploy('Delete')).toMatchObject({ Status: 'SUCCESS' })
    vi.stubEnv('DATABASE_URL', 'not even a url')
    expect(await deploy('Delete')).toMatchObject({ Status: 'SUCCESS' })
    expect(await schemaOf()).toHaveLength(migrations.length)
  })
})

describe('a database that is resuming', () => {
  it('is waited for: connections that are refused, cut, or told that it is starting', async () => {
    const target = new URL(url)
    const starting = Buffer.from('SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0')
    const header = Buffer.from('E\0\0\0\0')
    header.writeInt32BE(starting.length + 4, 1)
    const refusals = ['cut', 'starting']
    const proxy = createServer((client) => {
      client.on('error', () => {})
      const refusal = refusals.shift()
      if (refusal === 'cut') {
        client.destroy()
        return
      }
      if (refusal === 'starting') {
        client.once('data', () => client.end(Buffer.concat([header, starting])))
        return
      }
      const server = openSocket(Number(target.port), target.hostname)
      server.on('error', () => {})
      client.pipe(server).pipe(client)
    })
    proxy.listen(0, '127.0.0.1')
    await once(proxy, 'listening')
    const through = new URL(url)
    through.host = `127.0.0.1:${(proxy.address() as AddressInfo).port}`
    vi.stubEnv('DATABASE_URL', through.href)
    expect(await deploy('Create')).toMatchObject({ Status: 'SUCCESS' })
    expect(refusals).toEqual([])
    proxy.close()
  })
})

describe('a secret that the role may not read yet', () => {
  it('is asked for again', async () => {
    manager.secret = null
    for (const [name, value] of Object.entries({
      DATABASE_AUTH: 'secret',
      DATABASE_SECRET_ARN: 'arn:aws:secretsmanager:eu-west-3:123456789012:secret:shop-AbCdEf',
      AWS_ENDPOINT_URL_SECRETS_MANAGER: manager.url,
      AWS_ACCESS_KEY_ID: 'AKID',
      AWS_SECRET_ACCESS_KEY: 'a secret',
    }))
      vi.stubEnv(name, value)
    const answer = deploy('Create')
    await expect.poll(() => manager.reads).toBe(1)
    manager.secret = { found: true }
    expect(await answer).toMatchObject({
      Status: 'FAILED',
      Reason: expect.stringContaining('to be JSON with'),
    })
    expect(manager.reads).toBe(2)
  })
})

describe('waking', () => {
  beforeEach(() => vi.stubEnv('WAKE_FUNCTION_ARN', wakeFunction))

  const standIn = () => installAwsLambda(sql, 'at the commit')

  it('is set where the database can invoke', async () => {
    await standIn()
    expect(await invoke()).toMatchObject({ wake: 'set' })
    expect(await sql`select function_arn, region from loopless.wake_target`).toEqual([
      { function_arn: wakeFunction, region: 'eu-west-3' },
    ])
  })

  it('ends with the stack, and what somebody else has set does not', async () => {
    await standIn()
    await invoke()
    const target = () => sql`select function_arn from loopless.wake_target`
    const another = wakeFunction.replace('eu-west-3', 'eu-west-1')
    vi.stubEnv('WAKE_FUNCTION_ARN', another)
    expect(await deploy('Delete')).toMatchObject({ Status: 'SUCCESS' })
    expect(await target()).toEqual([{ function_arn: wakeFunction }])
    vi.stubEnv('WAKE_FUNCTION_ARN', wakeFunction)
    expect(await deploy('Delete')).toMatchObject({ Status: 'SUCCESS' })
    expect(await target()).toEqual([])
    expect(await schemaOf()).toHaveLength(migrations.length)
  })

  it('is left out where the database cannot, and said', async () => {
    expect(await invoke()).toMatchObject({ wake: expect.stringContaining('no aws_lambda in this database') })
    expect(await sql`select from loopless.wake_target`).toEqual([])
  })

  it('says what to grant when the owner of the schema may not invoke', async () => {
    await standIn()
    const owner = await roles.make()
    await sql`alter role ${sql(owner)} createrole`
    await sql`grant create on database ${sql(new URL(url).pathname.slice(1))} to ${sql(owner)}`
    vi.stubEnv('DATABASE_URL', as(owner, url))
    await expect(invoke()).rejects.toThrow(
      `As the master user run: grant usage on schema aws_lambda, aws_commons to ${owner}; grant execute on all functions in schema aws_lambda, aws_commons to ${owner};`,
    )
  })

  it('makes the extension where the server has one, and says who can when it may not', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'loopless-extension-'))
    const server = await startServer({ settings: { extension_control_path: `${directory}:$system` } })
    try {
      await writeExtensions(directory)
      await withSession(server.url, async (admin) => {
        await admin`create role owner login createrole`
        await admin`grant create on database postgres to owner`
      })
      vi.stubEnv('DATABASE_URL', as('owner', server.url))
      await expect(invoke()).rejects.toThrow(
        'making the extension aws_lambda takes the master user. As that, run: create extension aws_lambda cascade;',
      )
      await withSession(server.url, async (admin) => {
        await admin`create extension aws_lambda cascade`
        await admin`grant usage on schema aws_lambda, aws_commons to owner`
      })
      expect(await invoke()).toMatchObject({ wake: 'set' })
      await withSession(server.url, (admin) => admin`create database other`)
      vi.stubEnv('DATABASE_URL', server.databaseUrl('other'))
      expect(await invoke()).toMatchObject({ wake: 'set' })
      await withSession(server.databaseUrl('other'), async (admin) => {
        expect(await admin`select from pg_extension where extname = 'aws_lambda'`).toHaveLength(1)
      })
    } finally {
      await server.destroy()
      await rm(directory, { recursive: true })
    }
  })

  /** What a server of RDS offers: the two extensions, here without anything behind them. */
  async function writeExtensions(directory: string): Promise<void> {
    const files = {
      'aws_commons.control': `default_version = '1'`,
      'aws_commons--1.sql': `create schema aws_commons;`,
      'aws_lambda.control': `default_version = '1'\nrequires = 'aws_commons'`,
      'aws_lambda--1.sql': `create schema aws_lambda; create function aws_lambda.invoke() returns void language sql as '';`,
    }
    await chmod(directory, 0o755)
    await mkdir(join(directory, 'extension'))
    for (const [name, text] of Object.entries(files))
      await writeFile(join(directory, 'extension', name), text)
  }
})
