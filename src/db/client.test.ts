import { describe, expect, it, vi } from 'vitest'
import { testDatabase } from '../../tests/support/database.ts'
import { startDeafServer } from '../../tests/support/deaf-server.ts'
import { InvalidOptionError } from '../errors.ts'
import { connect } from './client.ts'

const { url } = await testDatabase()

function refusalOf(given: unknown): InvalidOptionError {
  try {
    connect(given as string)
  } catch (error) {
    if (error instanceof InvalidOptionError) return error
    throw error
  }
  throw new Error('It was taken.')
}

describe('connect', () => {
  it.each([
    ['undefined', undefined, /got none: is the environment variable set/],
    ['an empty url', '', /got none: is the environment variable set/],
    ['another kind of url', 'mysql://user:s3cret@host/db', /like postgres:\/\/user:password@host:5432\/name/],
    ['what is no url', 's3cret', /like postgres:\/\/user:password@host:5432\/name/],
    ['a port that is none', 'postgres://user:s3cret@host:port/db', /cannot be read/],
    ['a "/" in a password', 'postgres://user:s3cret/@host/db', /write "\/" in a password as %2F/],
    ['a "%" in a password', 'postgres://user:s3cret%zz@host/db', /write a "%" in a password as %25/],
    ['a "%" at the end of a password', 'postgres://user:s3cret%@host/db', /as %25/],
    ['what is no text', { url: 's3cret' }, /like postgres/],
  ])('refuses %s, and does not repeat it', (_, given, message) => {
    const error = refusalOf(given)
    expect(error.message).toMatch(message)
    expect(error.message).not.toContain('s3cret')
    expect(error.cause).toBeUndefined()
  })

  it.each([
    'postgres://by-secret',
    'postgresql://user@host',
    'POSTGRES://host',
    'postgres://',
    'postgres:///db',
    'postgres://user:%25%2F@host:5432/db?sslmode=require',
    'postgres://user@one:5432,two:5433/db?target_session_attrs=primary',
    'postgres://user@%2Fvar%2Frun%2Fpostgresql/db',
    'postgres://user@[::1]:5432/db',
  ])('takes %s, and connects to nothing yet', async (given) => {
    await connect(given).end()
  })

  it.each(['', '?sslmode=require'])(
    'leaves no socket of a client that was ended as it connected%s',
    async (query) => {
      const { port, close } = await startDeafServer()
      const countSockets = (): number =>
        process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length
      const before = countSockets()
      const sql = connect(`postgres://somebody@127.0.0.1:${port}/somewhere${query}`)
      const asked = sql`select 1`.catch((error: { code: string }) => error.code)
      await vi.waitFor(() => expect(countSockets()).toBe(before + 1))
      await sql.end({ timeout: 0 })
      expect(await asked).toBe('CONNECTION_DESTROYED')
      await vi.waitFor(() => expect(countSockets()).toBe(before))
      await close()
    },
  )

  it('connects to the first of several hosts that answers', async () => {
    const { username, host, pathname } = new URL(url)
    const sql = connect(`postgres://${username}@127.0.0.1:1,${host}${pathname}`)
    expect(await sql`select 1 as one`).toEqual([{ one: 1 }])
    await sql.end()
  })
})
