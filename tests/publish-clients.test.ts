import { sql as drizzleSql } from 'drizzle-orm'
import { drizzle as drizzlePg } from 'drizzle-orm/node-postgres'
import { drizzle as drizzlePostgresJs } from 'drizzle-orm/postgres-js'
import { CamelCasePlugin, Kysely, sql as kyselySql, PostgresDialect } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  type AnyTransaction,
  defineEvent,
  InvalidEventError,
  InvalidOptionError,
  publish,
  publishMany,
  SchemaMissingError,
} from '../src/index.ts'
import { testDatabase } from './support/database.ts'

const { sql, url, connect } = await testDatabase()
const orderPlaced = defineEvent<unknown>('order.placed')
const pool = new pg.Pool({ connectionString: url, max: 3 })
const kysely = new Kysely<unknown>({
  dialect: new PostgresDialect({ pool }),
  plugins: [new CamelCasePlugin()],
})
const onPg = drizzlePg(pool)
const onPostgresJs = drizzlePostgresJs(connect({ max: 3 }))
afterAll(() => pool.end())

/** A transaction of the client's own kind, and a statement of the caller's in it. */
interface InTransaction {
  readonly tx: AnyTransaction
  run(statement: string): Promise<unknown>
}

interface Client {
  /** The client outside a transaction. */
  readonly outside: AnyTransaction
  readonly canBegin: boolean
  transaction(work: (inside: InTransaction) => Promise<void>): Promise<unknown>
}

async function withPgClient(work: (inside: InTransaction) => Promise<void>): Promise<void> {
  const client = await pool.connect()
  try {
    await client.query('begin')
    await work({ tx: client, run: (statement) => client.query(statement) })
    await client.query('commit')
  } catch (error) {
    await client.query('rollback')
    throw error
  } finally {
    client.release()
  }
}

const clients: Record<string, Client> = {
  'postgres.js': {
    outside: sql,
    canBegin: true,
    transaction: (work) => sql.begin((tx) => work({ tx, run: async (statement) => tx.unsafe(statement) })),
  },
  pg: { outside: pool, canBegin: false, transaction: withPgClient },
  'drizzle-orm on pg': {
    outside: onPg,
    canBegin: true,
    transaction: (work) =>
      onPg.transaction((tx) => work({ tx, run: async (statement) => tx.execute(drizzleSql.raw(statement)) })),
  },
  'drizzle-orm on postgres.js': {
    outside: onPostgresJs,
    canBegin: true,
    transaction: (work) =>
      onPostgresJs.transaction((tx) =>
        work({ tx, run: async (statement) => tx.execute(drizzleSql.raw(statement)) }),
      ),
  },
  kysely: {
    outside: kysely,
    canBegin: true,
    transaction: (work) =>
      kysely
        .transaction()
        .execute((tx) => work({ tx, run: (statement) => kyselySql.raw(statement).execute(tx) })),
  },
  'kysely, transaction controlled by hand': {
    outside: kysely,
    canBegin: true,
    async transaction(work) {
      const tx = await kysely.startTransaction().execute()
      try {
        await work({ tx, run: (statement) => kyselySql.raw(statement).execute(tx) })
        await tx.commit().execute()
      } catch (error) {
        await tx.rollback().execute()
        throw error
      }
    },
  },
}

const payloads = async (): Promise<unknown[]> => {
  const rows = await sql<{ payload: unknown }[]>`select payload from loopless.event order by id`
  return rows.map((row) => row.payload)
}
const many = (count: number) => Array.from({ length: count }, (_, i) => orderPlaced(i))

beforeAll(async () => {
  await sql`create table effect (n integer)`
})
beforeEach(async () => {
  await sql`truncate loopless.event, loopless.delivery, loopless.dedupe_key, effect`
})

describe.for(Object.entries(clients))('%s', ([, client]) => {
  const { transaction, outside } = client

  test('publishes in the transaction it is given, with every option', async () => {
    const options = { dueAt: new Date('2030-01-01T00:00:00Z'), dedupeKey: '"k" \\ $1', headers: { a: '✓' } }
    const ids: string[] = []
    await transaction(async ({ tx, run }) => {
      await run('insert into effect values (1)')
      ids.push(await publish(tx, orderPlaced({ text: 'é \0 \ud800 $1 %s' })))
      ids.push(await publish(tx, orderPlaced({ n: 2 }), options))
      ids.push(
        ...(await publishMany(tx, [orderPlaced(3), { event: orderPlaced(4), ...options }, orderPlaced(5)])),
      )
      expect(await payloads()).toEqual([])
    })
    expect(await payloads()).toEqual([{ text: 'é \0 \ud800 $1 %s' }, { n: 2 }, 3, 5])
    expect(ids).toEqual([ids[0], ids[1], ids[2], ids[1], expect.stringMatching(/^\d+$/)])
    expect(
      await sql`select e.id, d.due_at, e.headers from loopless.delivery d join loopless.event e on e.id = d.event_id`,
    ).toEqual([{ id: ids[1], due_at: options.dueAt, headers: options.headers }])
    expect(await sql`select count(distinct xid)::int as n from loopless.event`).toEqual([{ n: 1 }])
  })

  test('leaves nothing when it rolls back', async () => {
    const rolledBack = transaction(async ({ tx, run }) => {
      await run('insert into effect values (1)')
      await publish(tx, orderPlaced(1), { dedupeKey: 'k' })
      await publishMany(tx, many(5_000))
      throw new Error('changed my mind')
    })
    await expect(rolledBack).rejects.toThrow('changed my mind')
    expect(await payloads()).toEqual([])
    expect(await sql`select from effect`).toHaveLength(0)
  })

  test('publishes several chunks in one transaction', async () => {
    const ids: string[] = []
    await transaction(async ({ tx }) => {
      ids.push(...(await publishMany(tx, many(5_000))))
    })
    expect(await payloads()).toEqual(Array.from({ length: 5_000 }, (_, i) => i))
    expect(ids).toEqual((await sql`select id from loopless.event order by id`).map((row) => row['id']))
    expect(await sql`select count(distinct xid)::int as n from loopless.event`).toEqual([{ n: 1 }])
  })

  test('takes back the chunks of a call that fails, and the transaction goes on', async () => {
    await transaction(async ({ tx, run }) => {
      await run('set local loopless.max_payload_bytes = 100')
      await publish(tx, orderPlaced('before'))
      await expect(publishMany(tx, [...many(5_000), orderPlaced('x'.repeat(100))])).rejects.toMatchObject({
        name: 'InvalidEventError',
        code: 'PAYLOAD_TOO_LARGE',
      })
      await expect(publishMany(tx, [...many(5_000), orderPlaced(undefined)])).rejects.toThrow(
        InvalidEventError,
      )
      await run('insert into effect values (1)')
      await publish(tx, orderPlaced('after'))
    })
    expect(await payloads()).toEqual(['before', 'after'])
    expect(await sql`select from effect`).toHaveLength(1)
  })

  test('commits at once outside a transaction; several chunks together or not at all', async () => {
    await publish(outside, orderPlaced('one'))
    await publishMany(outside, [orderPlaced('two')])
    expect(await payloads()).toEqual(['one', 'two'])
    const bad = publishMany(outside, [...many(5_000), orderPlaced(1n)])
    if (!client.canBegin) {
      await expect(bad).rejects.toThrow(InvalidOptionError)
      await expect(publishMany(outside, many(5_000))).rejects.toThrow(/^Expected tx to be in a transaction: /)
      expect(await payloads()).toHaveLength(2)
      return
    }
    await expect(bad).rejects.toThrow(InvalidEventError)
    expect(await payloads()).toHaveLength(2)
    await publishMany(outside, many(5_000))
    expect(await payloads()).toHaveLength(5_002)
  })

  test('says what is wrong in the error classes of Loopless', async () => {
    const tooBig = transaction(async ({ tx, run }) => {
      await run('set local loopless.max_payload_bytes = 5')
      await publish(tx, orderPlaced('123456'))
    })
    await expect(tooBig).rejects.toMatchObject({
      name: 'InvalidEventError',
      code: 'PAYLOAD_TOO_LARGE',
      eventName: 'order.placed',
      message: expect.stringMatching(
        /^Expected the payload of order\.placed to be at most 5 bytes, got 8\. /,
      ),
    })
    const noRight = transaction(async ({ tx, run }) => {
      await run('set local role pg_read_all_stats')
      await publish(tx, orderPlaced(1))
    })
    await expect(noRight).rejects.toMatchObject({ name: 'DatabaseError', sqlState: '42501' })
  })
})

test('a client of any make is taken by its method query', async () => {
  const rowsOnly = { query: async (text: string, values: unknown[]) => sql.unsafe(text, values as never[]) }
  await publish(rowsOnly, orderPlaced(1))
  await publish(
    { query: async (text, values) => ({ rows: await rowsOnly.query(text, values) }) },
    orderPlaced(2),
  )
  expect(await payloads()).toEqual([1, 2])
})

test('a database without the schema is named as such by every client', async () => {
  await sql`create database ${sql(`${new URL(url).pathname.slice(1)}_bare`)} template template0`
  const bareUrl = `${url}_bare`
  const bare = new pg.Pool({ connectionString: bareUrl, max: 1 })
  const bareSql = connect({ database: new URL(bareUrl).pathname.slice(1), max: 1 })
  for (const client of [
    bare,
    bareSql,
    drizzlePg(bare),
    drizzlePostgresJs(bareSql),
    new Kysely<unknown>({ dialect: new PostgresDialect({ pool: bare }) }),
  ]) {
    await expect(publish(client, orderPlaced(1))).rejects.toThrow(SchemaMissingError)
    await expect(publishMany(client, [orderPlaced(1)])).rejects.toThrow(/run "loopless migrate"/)
  }
  await bare.end()
  await bareSql.end()
  await sql`drop database ${sql(new URL(bareUrl).pathname.slice(1))}`
})
