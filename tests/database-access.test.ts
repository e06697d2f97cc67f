import { randomUUID } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { buildFunctions } from '../esbuild.config.mjs'
import { signToken } from '../functions/edge/token.ts'
import { connect, createRoles, migrate } from '../src/index.ts'
import { secretsManager } from './support/secrets-manager.ts'
import { startServer } from './support/server.ts'
import { startTlsServer } from './support/tls-server.ts'

// The built functions, each way to sign in, against a server that asks for it.

const root = fileURLToPath(new URL('..', import.meta.url))
const outdir = `.esbuild/functions-${randomUUID()}`
const arn = 'arn:aws:secretsmanager:eu-central-1:123456789012:secret:shop-AbCdEf'

process.setMaxListeners(0) // each environment listens for its end

const server = await startTlsServer()
afterAll(() => server.destroy())
const admin = connect(server.url)
afterAll(() => admin.end({ timeout: 1 }))
await migrate(admin)
const now = new Date('2030-01-01T00:00:00Z')
await createRoles(admin, { now })
await createRoles(admin, { now, names: { poller: 'poller_clone' } })
await admin`create role by_token login`
await admin`grant loopless_poller to by_token`
/** Of pg_hba.conf, where not otherwise said: everybody by password, encrypted. */
const byPassword = [
  'hostssl all loopless_poller,poller_clone all scram-sha-256',
  'hostssl all by_token all password', // which is what RDS asks of a token
  'hostnossl all loopless_poller,poller_clone,by_token all reject',
]
beforeEach(() => server.require(byPassword))
const manager = await secretsManager()

beforeAll(async () => {
  await buildFunctions({ outdir })
  for (const method of ['log', 'info', 'warn'] as const) vi.spyOn(console, method).mockReturnValue()
})
afterAll(() => rm(join(root, outdir), { recursive: true, force: true }))

const place = { DATABASE_HOST: 'localhost', DATABASE_PORT: String(server.port), DATABASE_NAME: 'postgres' }
beforeEach(() => {
  for (const [name, value] of Object.entries({
    AWS_REGION: 'eu-central-1',
    AWS_ACCESS_KEY_ID: 'AKID',
    AWS_SECRET_ACCESS_KEY: 'a secret',
    AWS_ENDPOINT_URL_SECRETS_MANAGER: manager.url,
    AWS_LAMBDA_FUNCTION_NAME: 'loopless-access',
    DATABASE_CA_FILE: server.caFile,
  }))
    vi.stubEnv(name, value)
  manager.reads = 0
})
afterEach(() => {
  vi.unstubAllEnvs()
  vi.useRealTimers()
})

/** A new environment of the function `poll`, as Lambda makes one; the function invokes it. */
function coldStart(environment: Record<string, string>): () => Promise<unknown> {
  for (const [name, value] of Object.entries(environment)) vi.stubEnv(name, value)
  const require = createRequire(import.meta.url)
  const path = join(root, outdir, 'poll.cjs')
  delete require.cache[path]
  const { handler } = require(path) as {
    handler: (event: object, context: { getRemainingTimeInMillis(): number }) => Promise<unknown>
  }
  return () => handler({}, { getRemainingTimeInMillis: () => 30_000 })
}

const polled = { polls: 1, drained: true }
const setPassword = (role: string, password: string) =>
  admin.unsafe(`alter role ${role} password '${password}'`)
/** Ends the session of the function, as when its environment was frozen for long. */
async function endSessions(): Promise<void> {
  await admin`
    select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'loopless-access'`
}
const users = async () =>
  (await admin`select usename from pg_stat_activity where application_name = 'loopless-access'`).map(
    ({ usename }) => usename,
  )

describe('by secret', () => {
  const bySecret = { DATABASE_AUTH: 'secret', DATABASE_SECRET_ARN: arn, ...place }

  it('signs in with what the secret holds, the place too when nothing else says it', async () => {
    await setPassword('loopless_poller', 'one')
    manager.secret = {
      username: 'loopless_poller',
      password: 'one',
      host: 'localhost',
      port: server.port,
      dbname: 'postgres',
    }
    const poll = coldStart({ ...bySecret, DATABASE_HOST: '', DATABASE_PORT: '', DATABASE_NAME: '' })
    expect(await poll()).toMatchObject(polled)
    expect(await poll()).toMatchObject(polled)
    expect(manager.reads).toBe(1)
  })

  it('survives a rotation, without a new environment and with one more read', async () => {
    await setPassword('loopless_poller', 'one')
    manager.secret = { username: 'loopless_poller', password: 'one' }
    const poll = coldStart(bySecret)
    await poll()
    await setPassword('loopless_poller', 'two')
    manager.secret = { username: 'loopless_poller', password: 'two' }
    expect(await poll()).toMatchObject(polled) // the connection that there is stays
    await endSessions()
    expect(await poll()).toMatchObject(polled)
    expect(manager.reads).toBe(2)
  })

  it('survives a rotation that changes between two users', async () => {
    await setPassword('loopless_poller', 'one')
    await setPassword('poller_clone', 'two')
    manager.secret = { username: 'loopless_poller', password: 'one' }
    const poll = coldStart(bySecret)
    await poll()
    manager.secret = { username: 'poller_clone', password: 'two' }
    await setPassword('loopless_poller', 'nobody knows')
    await endSessions()
    expect(await poll()).toMatchObject(polled)
    expect(await users()).toEqual(['poller_clone'])
  })

  it('gives up after one more read, and says what to do', async () => {
    await setPassword('loopless_poller', 'one')
    manager.secret = { username: 'loopless_poller', password: 'wrong' }
    const poll = coldStart(bySecret)
    await expect(poll()).rejects.toThrow(
      `password authentication failed for user "loopless_poller". The secret ${arn} was read again and is refused still: compare`,
    )
    expect(manager.reads).toBe(2)
  })

  it('says so when the secret may not be read', async () => {
    manager.secret = null
    await expect(coldStart(bySecret)()).rejects.toMatchObject({
      name: 'SettingError',
      message: `Secrets Manager refused ${arn}: AccessDeniedException: You may not. The function's role needs secretsmanager:GetSecretValue on it, and kms:Decrypt on its key when it has one of its own.`,
    })
  })
})

describe('by token', () => {
  const byToken = { DATABASE_AUTH: 'iam', DATABASE_USER: 'by_token', ...place }
  /** Has the server take what is signed now: RDS would check the signature. */
  const expectToken = async () =>
    setPassword(
      'by_token',
      await signToken({
        auth: 'iam',
        host: 'localhost',
        port: server.port,
        name: 'postgres',
        user: 'by_token',
        region: 'eu-central-1',
        prepare: true,
        caFile: null,
      }),
    )

  it('signs in, and with a new token when the first would have expired', async () => {
    vi.useFakeTimers({ toFake: ['Date'], now })
    await expectToken()
    const poll = coldStart(byToken)
    expect(await poll()).toMatchObject(polled)
    vi.setSystemTime(now.getTime() + 16 * 60_000)
    await expectToken()
    await endSessions()
    expect(await poll()).toMatchObject(polled)
    expect(await users()).toEqual(['by_token'])
  })

  it('says what a token needs when it is refused', async () => {
    await setPassword('by_token', 'another')
    await expect(coldStart(byToken)()).rejects.toThrow(
      /password authentication failed for user "by_token"\. Expected an IAM token to let "by_token" in\. .* rds-db:connect on arn:aws:rds-db:eu-central-1:/,
    )
  })

  it('says which credential is missing', async () => {
    vi.stubEnv('AWS_ACCESS_KEY_ID', undefined)
    await expect(coldStart(byToken)()).rejects.toThrow(/AWS_ACCESS_KEY_ID/)
  })

  it('says that the certificate is for another host, or cannot be verified', async () => {
    await expect(coldStart({ ...byToken, DATABASE_HOST: '127.0.0.1' })()).rejects.toThrow(
      /The certificate is for another host: use the endpoint/,
    )
    await expect(coldStart({ ...byToken, DATABASE_CA_FILE: server.otherCaFile })()).rejects.toThrow(
      /The certificate cannot be verified: set DATABASE_CA_FILE/,
    )
  })

  it('says that the server takes no TLS', async () => {
    const plain = await startServer()
    try {
      await expect(coldStart({ ...byToken, DATABASE_PORT: String(plain.port) })()).rejects.toThrow(
        /The server closed the connection: if it does so always, it takes no TLS/,
      )
    } finally {
      await plain.destroy()
    }
  })

  it('says what to look at when nothing listens, and when there is no such host', async () => {
    await expect(coldStart({ ...byToken, DATABASE_PORT: '1' })()).rejects.toThrow(
      /ECONNREFUSED.*Nothing listens there/,
    )
    await expect(coldStart({ ...byToken, DATABASE_HOST: 'nowhere.invalid' })()).rejects.toThrow(
      /(No such host|could not be resolved)/,
    )
  })

  it('says that there is no such database', async () => {
    await server.require(['hostssl all by_token all trust'])
    await expect(coldStart({ ...byToken, DATABASE_NAME: 'gone' })()).rejects.toThrow(
      /database "gone" does not exist\. There is no such database: check DATABASE_NAME/,
    )
  })
})

describe('by url', () => {
  beforeEach(() => server.require(['hostssl all by_token all trust']))
  const urlWith = (query: string, host = 'localhost') =>
    `postgres://by_token:any@${host}:${server.port}/postgres${query}`

  it.each(['?sslmode=verify-full', '?sslmode=verify-ca'])(
    'verifies what the url asks to verify: %s',
    async (query) => {
      expect(await coldStart({ DATABASE_URL: urlWith(query) })()).toMatchObject(polled)
      await expect(
        coldStart({ DATABASE_URL: urlWith(query), DATABASE_CA_FILE: server.otherCaFile })(),
      ).rejects.toThrow(/The certificate cannot be verified/)
    },
  )

  it('encrypts and verifies nothing when the url asks for that', async () => {
    const poll = coldStart({ DATABASE_URL: urlWith('?sslmode=require', '127.0.0.1'), DATABASE_CA_FILE: '' })
    expect(await poll()).toMatchObject(polled)
    const [row] = await admin`
      select s.ssl from pg_stat_ssl s join pg_stat_activity a using (pid) where a.application_name = 'loopless-access' and a.usename = 'by_token' order by a.backend_start desc limit 1`
    expect(row).toEqual({ ssl: true })
  })

  it('refuses an authority that the url would not look at', () => {
    expect(() => coldStart({ DATABASE_URL: urlWith('?sslmode=require') })).toThrow(
      'DATABASE_CA_FILE is set, but DATABASE_URL does not ask to verify a certificate: add sslmode=verify-full to it.',
    )
  })

  it('says what is missing when the server takes encrypted connections only', async () => {
    await server.require(['hostnossl all by_token all reject'])
    await expect(coldStart({ DATABASE_URL: urlWith(''), DATABASE_CA_FILE: '' })()).rejects.toThrow(
      /The server may take encrypted connections only: add sslmode=verify-full to DATABASE_URL/,
    )
  })
})

it('starts cold with what is missing in its settings, and says it', () => {
  expect(() => coldStart({ DATABASE_AUTH: 'iam', DATABASE_HOST: '' })).toThrow(
    /^Expected DATABASE_HOST to be set/,
  )
})
