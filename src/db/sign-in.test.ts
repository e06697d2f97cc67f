import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { startDeafServer } from '../../tests/support/deaf-server.ts'
import { withSession } from '../../tests/support/session.ts'
import { startTlsServer } from '../../tests/support/tls-server.ts'
import { type ConnectOptions, connect, type Sql } from './client.ts'
import type { SignIn } from './sign-in.ts'

const server = await startTlsServer()
afterAll(() => server.destroy())
await withSession(server.url, async (sql) => {
  await sql.unsafe(`
    create role scram login password 'one';
    set password_encryption = 'md5';
    create role old login password 'two'`)
  await sql`create database other`
})
await server.require([
  'hostssl all scram all scram-sha-256',
  'hostssl all old all md5',
  'hostnossl all scram,old all reject',
])

const certificates = readFileSync(server.caFile, 'utf8')
const place = { host: 'localhost', port: server.port, database: 'postgres', certificates }
const scram: SignIn = { ...place, user: 'scram', password: 'one' }
const old: SignIn = { ...place, user: 'old', password: 'two', database: 'other' }

let clients: Sql[] = []
afterEach(async () => {
  await Promise.all(clients.map((client) => client.end({ timeout: 0 })))
  clients = []
})
function open(signIn: () => Promise<SignIn>, options: ConnectOptions = {}): Sql {
  const client = connect('postgres://nowhere.invalid', { ...options, signIn })
  clients.push(client)
  return client
}

const whoIs = (sql: Sql) =>
  sql`
    select current_user as user, current_database() as database, ssl from pg_stat_ssl where pid = pg_backend_pid()`
const end = (sql: Sql) => sql`select pg_terminate_backend(pg_backend_pid())`.catch(() => {})

describe('signIn', () => {
  it('is asked for each new connection: place, name and password, whichever way the server asks for it', async () => {
    const answers = [scram, old, scram]
    const sql = open(async () => answers.shift() ?? scram)
    expect(await whoIs(sql)).toEqual([{ user: 'scram', database: 'postgres', ssl: true }])
    await end(sql)
    expect(await whoIs(sql)).toEqual([{ user: 'old', database: 'other', ssl: true }])
    await end(sql)
    expect(await whoIs(sql)).toEqual([{ user: 'scram', database: 'postgres', ssl: true }])
  })

  it('is asked once a connection', async () => {
    let asked = 0
    const sql = open(async () => {
      asked++
      return scram
    })
    await Promise.all([whoIs(sql), whoIs(sql), whoIs(sql)])
    expect(asked).toBe(1)
  })

  it('fails the query with what it fails with, and the next one asks again', async () => {
    let tries = 0
    const sql = open(async () => {
      if (tries++ === 0) throw Object.assign(new Error('no secret today'), { code: 'SECRET' })
      return scram
    })
    await expect(whoIs(sql)).rejects.toMatchObject({ message: 'no secret today', code: 'SECRET' })
    expect(await whoIs(sql)).toHaveLength(1)
  })

  it('fails the query when the password is refused, and the next one asks again', async () => {
    const answers = [{ ...scram, password: 'wrong' }, scram]
    const sql = open(async () => answers.shift() ?? scram)
    await expect(whoIs(sql)).rejects.toMatchObject({ code: '28P01' })
    expect(await whoIs(sql)).toHaveLength(1)
  })

  it('fails the query when nothing listens there', async () => {
    const sql = open(async () => ({ ...scram, host: '127.0.0.1', port: 1 }))
    await expect(whoIs(sql)).rejects.toMatchObject({ code: 'ECONNREFUSED' })
    await expect(whoIs(sql)).rejects.toMatchObject({ code: 'ECONNREFUSED' })
  })

  it('fails the query when the server takes the connection and says nothing', async () => {
    const silent = createServer((socket) => socket.on('error', () => {}).resume())
    silent.listen(0, '127.0.0.1')
    await once(silent, 'listening')
    const { port } = silent.address() as AddressInfo
    const sql = open(async () => ({ ...scram, host: '127.0.0.1', port }), { connectTimeoutSeconds: 1 })
    await expect(whoIs(sql)).rejects.toMatchObject({ code: 'CONNECT_TIMEOUT' })
    silent.close()
  })

  it('fails the query when nobody answers, as behind a security group that lets nobody in', async () => {
    const { port, close } = await startDeafServer()
    const sql = open(async () => ({ ...scram, host: '127.0.0.1', port }), { connectTimeoutSeconds: 1 })
    await expect(whoIs(sql)).rejects.toMatchObject({
      code: 'CONNECT_TIMEOUT',
      message: `write CONNECT_TIMEOUT 127.0.0.1:${port}`,
    })
    await close()
  })

  it('sends nothing for a client that was ended meanwhile', async () => {
    const received: Buffer[] = []
    const listener = createServer((socket) => socket.on('data', (data) => received.push(data)))
    listener.listen(0, '127.0.0.1')
    await once(listener, 'listening')
    const { port } = listener.address() as AddressInfo
    const asked = Promise.withResolvers<void>()
    const answer = Promise.withResolvers<SignIn>()
    const sql = open(() => {
      asked.resolve()
      return answer.promise
    })
    const query = whoIs(sql).catch((error: { code: string }) => error.code)
    await asked.promise
    await sql.end({ timeout: 0 })
    expect(await query).toBe('CONNECTION_DESTROYED')
    answer.resolve({ ...scram, host: '127.0.0.1', port })
    const [socket] = await once(listener, 'connection')
    await once(socket, 'close')
    expect(received).toEqual([])
    listener.close()
  })

  it('gives each of several connections what it was told', async () => {
    const sql = open(async () => scram, { max: 3 })
    const pids = await Promise.all([1, 2, 3].map(() => sql`select pg_backend_pid() as pid, pg_sleep(0.05)`))
    expect(new Set(pids.map(([row]) => row?.['pid'])).size).toBeGreaterThan(1)
  })

  it('can cancel a statement', async () => {
    const sql = open(async () => scram)
    await whoIs(sql)
    const statement = sql`select pg_sleep(60)`
    const ended = statement.execute()
    await withSession(server.url, async (admin) => {
      const running = () =>
        admin`select from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'`
      while ((await running()).length === 0);
    })
    statement.cancel()
    await expect(ended).rejects.toMatchObject({ code: '57014' })
  })
})

describe('its TLS', () => {
  it.each<[string, Partial<SignIn>, string]>([
    [
      'another authority',
      { certificates: readFileSync(server.otherCaFile, 'utf8') },
      'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    ],
    ['the authorities that Node knows', { certificates: [] }, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'],
    ['a host that the certificate is not for', { host: '127.0.0.1' }, 'ERR_TLS_CERT_ALTNAME_INVALID'],
  ])('refuses %s, before a name or a password is sent', async (_, other, code) => {
    const sql = open(async () => ({ ...scram, ...other }))
    await expect(whoIs(sql)).rejects.toMatchObject({ code })
  })

  it('takes any of several authorities', async () => {
    const sql = open(async () => ({
      ...scram,
      certificates: [readFileSync(server.otherCaFile, 'utf8'), certificates],
    }))
    expect(await whoIs(sql)).toMatchObject([{ ssl: true }])
  })
})

describe('certificates of a url', () => {
  const urlFor = (host: string) => `postgres://scram:one@${host}:${server.port}/postgres?sslmode=verify-full`
  const open = (host: string, file: string): Sql => {
    const client = connect(urlFor(host), { certificates: readFileSync(file, 'utf8') })
    clients.push(client)
    return client
  }

  it('verify the server', async () => {
    expect(await whoIs(open('localhost', server.caFile))).toMatchObject([{ ssl: true }])
  })

  it.each([
    ['of another authority', 'localhost', server.otherCaFile, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'],
    ['for another host', '127.0.0.1', server.caFile, 'ERR_TLS_CERT_ALTNAME_INVALID'],
  ])('refuse a server whose certificate is %s', async (_, host, file, code) => {
    await expect(whoIs(open(host, file))).rejects.toMatchObject({ code })
  })
})
