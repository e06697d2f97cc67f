import { connect, defineEvent, publish, publishMany, type Sql } from '../src/index.ts'
import { type Benchmark, compare, rateOf } from './figure.ts'

const bulkCount = 100_000
const singleCount = 2_000
const chunk = 2_000

/**
 * Publishing one by one and in bulk, against the plain insert that does the same by hand into the same table: the
 * same payload objects of 200 bytes, the same transactions, and for bulk the chunk that is best for both.
 */
export const publishing: Benchmark = async function* ({ server, rounds }) {
  const sql = connect(await server.createDatabase('bench_publish'), { statementTimeoutMs: 0 })
  const single = await compare(
    rounds,
    () => withEmptyLog(sql, () => publishSingly(sql)),
    () => withEmptyLog(sql, () => insertSingly(sql)),
  )
  yield { what: 'publish, one transaction each', ...single, unit: 'events/s', target: null }
  const bulk = await compare(
    rounds,
    () => withEmptyLog(sql, () => publishInBulk(sql)),
    () => withEmptyLog(sql, () => insertInBulk(sql)),
  )
  await sql.end()
  yield {
    what: 'publish in bulk, 100,000 in a transaction',
    ...bulk,
    unit: 'events/s',
    target: { atLeast: 0.6 },
  }
}

async function withEmptyLog(sql: Sql, action: () => Promise<number>): Promise<number> {
  await sql`truncate loopless.event`
  await sql`checkpoint`
  return rateOf(action)
}

const orderPlaced = defineEvent<Payload>('order.placed')

interface Payload {
  readonly orderId: number
  readonly padding: string
}

/** 200 bytes as JSON. */
const payloadOf = (i: number): Payload => ({ orderId: 1_000_000 + i, padding: 'x'.repeat(168) })

async function publishSingly(sql: Sql): Promise<number> {
  for (let i = 0; i < singleCount; i++) await publish(sql, orderPlaced(payloadOf(i)))
  return singleCount
}

async function insertSingly(sql: Sql): Promise<number> {
  for (let i = 0; i < singleCount; i++) {
    await sql`
      insert into loopless.event (name, payload)
      values ('order.placed', ${JSON.stringify(payloadOf(i))}::text::json)
      returning id`
  }
  return singleCount
}

async function publishInBulk(sql: Sql): Promise<number> {
  function* events() {
    for (let i = 0; i < bulkCount; i++) yield orderPlaced(payloadOf(i))
  }
  const ids = await publishMany(sql, events())
  return ids.length
}

async function insertInBulk(sql: Sql): Promise<number> {
  await sql.begin(async (tx) => {
    for (let from = 0; from < bulkCount; from += chunk) {
      const payloads = Array.from({ length: chunk }, (_, i) => JSON.stringify(payloadOf(from + i)))
      const names = payloads.map(() => 'order.placed')
      await tx`
        insert into loopless.event (name, payload)
        select v.name, v.payload
        from unnest(${names}::text[], ${payloads}::text[]::json[]) as v (name, payload)`
    }
  })
  return bulkCount
}
