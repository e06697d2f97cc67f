import { expect, it } from 'vitest'
import { testDatabase } from '../tests/support/database.ts'
import { InvalidOptionError, SchemaMissingError } from './errors.ts'
import { defineHandler } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { poll } from './poll.ts'
import { register } from './register.ts'

const { sql, connect, url } = await testDatabase()
const now = new Date('2100-01-01T00:00:00Z')
const later = new Date('2100-01-02T00:00:00Z')
const handled: string[] = []

const mail = defineHandler('order.*', {}, ({ name }) => void handled.push(`mail ${name}`))
const stock = defineHandler('order.placed', {}, ({ name }) => void handled.push(`stock ${name}`))
const old = defineHandlers({ mail })
const current = defineHandlers({ mail, stock })

async function registered(): Promise<unknown> {
  return await sql`
    select b.handler_set as hash, b.registered_at as at,
      (select json_object_agg(h.name, h.pattern order by h.name) from loopless.handler h) as handlers
    from loopless.bus b`
}

it('records the names and patterns of a set, and forgets those of the set before', async () => {
  await register(sql, current, now)
  expect(await registered()).toEqual([
    { hash: current.hash, at: now, handlers: { mail: 'order.*', stock: 'order.placed' } },
  ])
  await register(sql, old, later)
  expect(await registered()).toEqual([{ hash: old.hash, at: later, handlers: { mail: 'order.*' } }])
  await register(sql, defineHandlers({}), later)
  expect(await registered()).toMatchObject([{ handlers: null }])
})

it('lets a poller of another set claim nothing, so that no event misses a new handler', async () => {
  await register(sql, current, now)
  await sql`select loopless.publish('order.placed', '{}')`
  await expect(poll(now, { sql, handlers: old })).rejects.toMatchObject({
    code: 'HANDLER_SET_NOT_REGISTERED',
  })
  expect(handled).toEqual([])
  await poll(now, { sql, handlers: current })
  expect(handled.sort()).toEqual(['mail order.placed', 'stock order.placed'])
})

it('waits for a claim under way, which then belongs to the set before', async () => {
  await register(sql, old, now)
  await sql`select loopless.publish('order.shipped', '{}')`
  const poller = await connect({ max: 1 }).reserve()
  await poller`begin`
  await poller`select loopless.claim(${now}, gen_random_uuid(), ${later}, 10, 1000, 10, ${old.hash})`
  const registering = register(sql, current, now)
  const waiting = async (): Promise<boolean> => {
    const rows = await sql`
      select from pg_locks
      where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())`
    return rows.length > 0
  }
  await expect.poll(waiting).toBe(true)
  expect(await registered()).toMatchObject([{ hash: old.hash }])
  await poller`commit`
  poller.release()
  await registering
  expect(await registered()).toMatchObject([{ hash: current.hash }])
})

it('takes what defineHandlers made only', async () => {
  const record = { mail: current.handlers[0] }
  await expect(register(sql, record as never, now)).rejects.toBeInstanceOf(InvalidOptionError)
})

it('says what to do in a database without the schema', async () => {
  const empty = new URL(url)
  empty.pathname = '/postgres'
  const other = connect({ max: 1, host: empty.hostname, port: Number(empty.port), database: 'postgres' })
  await expect(register(other, current, now)).rejects.toBeInstanceOf(SchemaMissingError)
})
