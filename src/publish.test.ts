import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import type postgres from 'postgres'
import * as v from 'valibot'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import * as z from 'zod'
import { testDatabase } from '../tests/support/database.ts'
import { migrate } from './db/migrate.ts'
import { DatabaseError, InvalidEventError, InvalidOptionError, SchemaMissingError } from './errors.ts'
import { defineEvent, type OutgoingEvent } from './event.ts'
import { publish } from './publish.ts'
import { publishMany } from './publish-many.ts'

const { sql, connect } = await testDatabase()
const orderPlaced = defineEvent('order.placed')
const orderShipped = defineEvent('order.shipped')

interface Row {
  id: string
  name: string
  text: string
  headers: unknown
  due_at: Date | null
}
const events = () =>
  sql<Row[]>`select id, name, payload::text as text, headers, due_at from loopless.event order by id`
const countEvents = async (): Promise<number> => {
  const [row] = await sql<{ n: number }[]>`select count(*)::int as n from loopless.event`
  return row?.n ?? -1
}
const countKeys = async (): Promise<number> => {
  const [row] = await sql<{ n: number }[]>`select count(*)::int as n from loopless.dedupe_key`
  return row?.n ?? -1
}
const errorOf = async (promise: PromiseLike<unknown>): Promise<unknown> =>
  promise.then(
    () => expect.unreachable('It did not fail.'),
    (error: unknown) => error,
  )

beforeEach(async () => {
  await sql`truncate loopless.event, loopless.delivery, loopless.dedupe_key`
})

describe('publish', () => {
  test('appends the event in the transaction of the caller and returns its id', async () => {
    const id = await sql.begin(async (tx) => {
      const made = await publish(tx, orderPlaced({ orderId: 1 }))
      expect(await countEvents()).toBe(0) // seen from outside
      return made
    })
    expect(id).toMatch(/^\d+$/)
    expect(await events()).toEqual([
      { id, name: 'order.placed', text: '{"orderId":1}', headers: null, due_at: null },
    ])
  })

  test('leaves nothing when the transaction of the caller rolls back', async () => {
    const rolledBack = sql.begin(async (tx) => {
      await publish(tx, orderPlaced({}), { dedupeKey: 'k', dueAt: new Date() })
      throw new Error('changed my mind')
    })
    await expect(rolledBack).rejects.toThrow('changed my mind')
    expect(await countEvents()).toBe(0)
    expect(await countKeys()).toBe(0)
    expect(await sql`select from loopless.delivery`).toHaveLength(0)
  })

  test('commits at once when the client is in no transaction', async () => {
    await publish(sql, orderPlaced({}))
    expect(await countEvents()).toBe(1)
  })

  test('works on a reserved connection and with a client that keeps no prepared statements', async () => {
    const reserved = await sql.reserve()
    await publish(reserved, orderPlaced({}))
    reserved.release()
    await publish(connect({ prepare: false }), orderPlaced({}))
    expect(await countEvents()).toBe(2)
  })

  test('returns the id as text from a client that renames columns and parses bigint', async () => {
    const client = connect({
      transform: { column: { to: (name) => name, from: (name) => name.toUpperCase() } },
      types: { bigint: { to: 20, from: [20], parse: BigInt, serialize: String } } as never,
    })
    expect(await publish(client, orderPlaced({}))).toMatch(/^\d+$/)
  })

  test('keeps headers, and null when there are none', async () => {
    const headers = { traceparent: '00-abc', 'x-ünï': '✓ "quoted"', ['__proto__']: 'own' }
    await publish(sql, orderPlaced(1), { headers })
    await publish(sql, orderPlaced(2), { headers: {} })
    const rows = await events()
    expect(rows.map((row) => row.headers)).toEqual([JSON.parse(JSON.stringify(headers)), null])
  })

  test('stores the input of a schema that transforms, not its output', async () => {
    const placed = defineEvent('order.placed', z.object({ n: z.string().transform(Number) }))
    await publish(sql, placed({ n: '7' }))
    expect((await events())[0]?.text).toBe('{"n":"7"}')
  })
})

describe('any JSON round-trips', () => {
  const roundTrip = async (payload: unknown): Promise<void> => {
    const one = await publish(sql, orderPlaced(payload))
    const [two] = await publishMany(sql, [orderPlaced(payload)])
    const [three] = await publishMany(sql, [{ event: orderPlaced(payload), dueAt: new Date(0) }])
    const rows = await sql<{ text: string }[]>`
      select payload::text as text from loopless.event where id in ${sql([one, two ?? '', three ?? ''])}`
    for (const { text } of rows) {
      expect(text).toBe(JSON.stringify(payload))
      expect(JSON.parse(text)).toEqual(payload)
    }
    expect(rows).toHaveLength(3)
  }

  test.for([
    'nul \0 inside',
    'lone \ud800 high and \udc00 low',
    { '\0': { '\ud83d': ['\udfff', '😀'] } },
    'line feed \n, return \r, separators \u2028 \u2029',
    '\\u0000 and \\n as text, "quotes" and \\',
    [1e308, -0.1, 5e-324, 9007199254740992, 0.1 + 0.2],
    null,
    true,
    '',
    [],
    {},
    { ['__proto__']: 1, a: { constructor: null } },
  ])('%j', roundTrip)

  test('whatever it is', async () => {
    const json = fc.jsonValue({ stringUnit: 'binary', maxDepth: 4 })
    const pieces = fc.array(fc.constantFrom('\0', '\ud800', '\udc00', '\n', '\\', '"', 'a', 'é', '😀'))
    const payloads = fc.oneof(
      json,
      pieces.map((parts) => parts.join('')),
    )
    await fc.assert(
      fc.asyncProperty(
        payloads.map((value) => JSON.parse(JSON.stringify(value))),
        roundTrip,
      ),
      { numRuns: 30 },
    )
  })

  test('by the rules of JSON.stringify: dates as text, undefined and functions left out, NaN as null', async () => {
    const at = new Date('2026-01-02T03:04:05.678Z')
    await publish(
      sql,
      orderPlaced({
        at,
        gone: undefined,
        fn: () => 1,
        list: [undefined, Number.NaN],
        map: new Map([[1, 2]]),
      }),
    )
    expect((await events())[0]?.text).toBe('{"at":"2026-01-02T03:04:05.678Z","list":[null,null],"map":{}}')
  })
})

describe('dueAt', () => {
  const dueAt = new Date('2030-01-02T03:04:05.678Z')

  test('makes the event wait as a delivery until then', async () => {
    const id = await publish(sql, orderPlaced({}), { dueAt })
    expect(await events()).toMatchObject([{ id, due_at: dueAt }])
    expect(
      await sql`
      select d.event_id, d.handler, d.reason, d.due_at, d.attempt, d.lease
      from loopless.delivery d join loopless.event e on (e.xid, e.id) = (d.event_xid, d.event_id)`,
    ).toEqual([{ event_id: id, handler: null, reason: 'delayed', due_at: dueAt, attempt: 0, lease: null }])
  })

  test('makes each event of publishMany wait that has one', async () => {
    const other = new Date('1900-01-01T00:00:00.000Z')
    const ids = await publishMany(sql, [
      { event: orderPlaced(1), dueAt },
      orderPlaced(2),
      { event: orderPlaced(3), dueAt: other },
    ])
    const waiting = await sql`select event_id, due_at from loopless.delivery order by event_id`
    expect(waiting).toEqual([
      { event_id: ids[0], due_at: dueAt },
      { event_id: ids[2], due_at: other },
    ])
    expect((await events()).map((row) => row.due_at)).toEqual([dueAt, null, other])
  })

  test('without it there is no delivery', async () => {
    await publish(sql, orderPlaced({}))
    expect(await sql`select from loopless.delivery`).toHaveLength(0)
  })
})

describe('dedupeKey', () => {
  /** Resolves when the session waits for another one; fails when what it does ends without. */
  const isBlocked = async (pid: number, doing: Promise<unknown>): Promise<void> => {
    let isOver = false
    const end = (): void => {
      isOver = true
    }
    doing.then(end, end)
    for (;;) {
      const [row] = await sql<{ n: number }[]>`select cardinality(pg_blocking_pids(${pid})) as n`
      if (row?.n) return
      if (isOver) throw new Error('It did not wait.')
    }
  }
  /** Two sessions publish with one key: the second while the transaction of the first is open, which then ends. */
  const beside = async (end: 'commit' | 'rollback'): Promise<{ firstId: string; secondId: string }> => {
    const [first, second] = [await sql.reserve(), await sql.reserve()]
    try {
      await first`begin`
      const firstId = await publish(first, orderPlaced(1), { dedupeKey: 'k' })
      const [row] = await second<{ pid: number }[]>`select pg_backend_pid() as pid`
      const secondId = publish(second, orderPlaced(2), { dedupeKey: 'k' })
      await isBlocked(row?.pid ?? 0, secondId)
      await first.unsafe(end)
      return { firstId, secondId: await secondId }
    } finally {
      await first`rollback`
      first.release()
      second.release()
    }
  }

  test('a second publish with the same key writes nothing and returns the first id', async () => {
    const first = await publish(sql, orderPlaced(1), { dedupeKey: 'k' })
    const second = await publish(sql, orderPlaced(2), { dedupeKey: 'k', dueAt: new Date() })
    expect(second).toBe(first)
    expect(await events()).toMatchObject([{ id: first, text: '1' }])
    expect(await sql`select from loopless.delivery`).toHaveLength(0)
  })

  test('also within one transaction', async () => {
    const ids = await sql.begin(async (tx) => [
      await publish(tx, orderPlaced(1), { dedupeKey: 'k' }),
      await publish(tx, orderPlaced(2), { dedupeKey: 'k' }),
    ])
    expect(new Set(ids).size).toBe(1)
    expect(await countEvents()).toBe(1)
  })

  test('is one of its own for each event name', async () => {
    const one = await publish(sql, orderPlaced(1), { dedupeKey: 'k' })
    const other = await publish(sql, orderShipped(1), { dedupeKey: 'k' })
    expect(other).not.toBe(one)
    expect(await countEvents()).toBe(2)
  })

  test('is kept for 7 days by default, and then free again', async () => {
    const first = await publish(sql, orderPlaced(1), { dedupeKey: 'k' })
    const kept = await sql`
      select extract(epoch from k.expires_at - e.published_at)::int as seconds
      from loopless.dedupe_key k join loopless.event e on e.id = k.event_id`
    expect(kept).toEqual([{ seconds: 604_800 }])
    await sql`update loopless.dedupe_key set expires_at = now()`
    const second = await publish(sql, orderPlaced(2), { dedupeKey: 'k' })
    expect(second).not.toBe(first)
    expect(await publish(sql, orderPlaced(3), { dedupeKey: 'k' })).toBe(second)
    expect((await events()).map((row) => row.text)).toEqual(['1', '2'])
  })

  test('is kept as long as asked', async () => {
    await publish(sql, orderPlaced(1), { dedupeKey: 'k', dedupeSeconds: 90 })
    await publishMany(sql, [{ event: orderPlaced(1), dedupeKey: 'l' }], { dedupeSeconds: 0.5 })
    const kept = await sql`
      select extract(epoch from k.expires_at - e.published_at)::float8 as seconds
      from loopless.dedupe_key k join loopless.event e on e.id = k.event_id order by k.key`
    expect(kept).toEqual([{ seconds: 90 }, { seconds: 0.5 }])
  })

  test('costs an event without one nothing', async () => {
    await publish(sql, orderPlaced(1))
    await publishMany(sql, [orderPlaced(2), { event: orderPlaced(3), dueAt: new Date() }])
    expect(await countKeys()).toBe(0)
  })

  test('a publish beside a transaction that holds the key waits, and returns its id when that commits', async () => {
    const { firstId, secondId } = await beside('commit')
    expect(secondId).toBe(firstId)
    expect((await events()).map((row) => row.text)).toEqual(['1'])
  })

  test('and publishes when that rolls back', async () => {
    const { firstId, secondId } = await beside('rollback')
    expect(secondId).not.toBe(firstId)
    expect((await events()).map((row) => row.text)).toEqual(['2'])
  })

  test.for(['commit', 'rollback'] as const)(
    'two that take over an expired key at once publish once: %s',
    async (end) => {
      await publish(sql, orderPlaced(0), { dedupeKey: 'k' })
      await sql`update loopless.dedupe_key set expires_at = now()`
      const { firstId, secondId } = await beside(end)
      expect(secondId === firstId).toBe(end === 'commit')
      expect((await events()).map((row) => row.text)).toEqual(['0', end === 'commit' ? '1' : '2'])
    },
  )

  test('a duplicate takes no lock: it does not wait for a transaction that met the key before', async () => {
    const id = await publish(sql, orderPlaced(1), { dedupeKey: 'k' })
    const impatient = connect({ max: 1, connection: { lock_timeout: 100 } })
    await sql.begin(async (other) => {
      expect(await publish(other, orderPlaced(2), { dedupeKey: 'k' })).toBe(id)
      expect(await publish(impatient, orderPlaced(3), { dedupeKey: 'k' })).toBe(id)
    })
  })

  test('many at once publish once', async () => {
    const ids = await Promise.all(
      Array.from({ length: 40 }, (_, i) => publish(sql, orderPlaced(i), { dedupeKey: 'k' })),
    )
    expect(new Set(ids).size).toBe(1)
    expect(await countEvents()).toBe(1)
  })

  test('a snapshot that cannot see who has the key fails with a serialization failure', async () => {
    const old = sql.begin('isolation level repeatable read', async (tx) => {
      await tx`select count(*) from loopless.event`
      await publish(sql, orderPlaced(1), { dedupeKey: 'k' })
      await publish(tx, orderPlaced(2), { dedupeKey: 'k' })
    })
    const error = await errorOf(old)
    expect(error).toBeInstanceOf(DatabaseError)
    expect(error).toMatchObject({ code: 'DATABASE_FAILED', sqlState: '40001' })
    expect(await countEvents()).toBe(1)
  })

  test('a session that met the table while it was small does not scan it when it has grown', async () => {
    const session = connect({ max: 1 })
    await publish(session, orderPlaced(0), { dedupeKey: 'small' })
    await sql`vacuum analyze loopless.dedupe_key`
    for (let i = 0; i < 20; i++) await publish(session, orderPlaced(i), { dedupeKey: 'small' })
    await sql`
      insert into loopless.dedupe_key (event_name, key, event_id, expires_at)
      select 'order.placed', 'k' || i, i, case when i % 2 = 0 then 'infinity' else now() end::timestamptz
      from generate_series(1, 20000) i`
    const [scans] = await session.begin(async (tx) => {
      for (const dedupeKey of ['small', 'k2', 'k3', 'new']) await publish(tx, orderPlaced(1), { dedupeKey })
      return tx`
        select seq_scan::int as sequential, idx_scan > 0 as by_index from pg_stat_xact_user_tables
        where relid = 'loopless.dedupe_key'::regclass`
    })
    expect(scans).toEqual({ sequential: 0, by_index: true })
  })

  test('two publishMany with the same keys in opposite orders do not deadlock', async () => {
    const keys = Array.from({ length: 200 }, (_, i) => `k${i}`)
    const all = (order: string[]) =>
      publishMany(
        sql,
        order.map((dedupeKey) => ({ event: orderPlaced(dedupeKey), dedupeKey })),
      )
    const [one, other] = await Promise.all([all(keys), all(keys.toReversed())])
    expect(one).toEqual(other.toReversed())
    expect(await countEvents()).toBe(200)
  })
})

describe('publishMany', () => {
  test('returns the ids in the order of the events, whatever options they have', async () => {
    const given = Array.from({ length: 500 }, (_, i) => ({
      event: i % 2 ? orderPlaced(i) : orderShipped(i),
      ...(i % 3 === 0 && { dueAt: new Date(i) }),
      ...(i % 5 === 0 && { dedupeKey: `k${(i * 7919) % 500}` }),
      ...(i % 7 === 0 && { headers: { i: String(i) } }),
    }))
    const ids = await publishMany(sql, given)
    const rows = new Map((await events()).map((row) => [row.id, row]))
    expect(rows.size).toBe(500)
    for (const [i, id] of ids.entries()) {
      expect(rows.get(id)).toEqual({
        id,
        name: i % 2 ? 'order.placed' : 'order.shipped',
        text: String(i),
        headers: i % 7 === 0 ? { i: String(i) } : null,
        due_at: i % 3 === 0 ? new Date(i) : null,
      })
    }
  })

  test('returns the id of the first for a key that was seen, in the same call or before', async () => {
    const before = await publish(sql, orderPlaced('before'), { dedupeKey: 'old' })
    const ids = await publishMany(sql, [
      { event: orderPlaced('z'), dedupeKey: 'z' },
      { event: orderPlaced('old again'), dedupeKey: 'old' },
      orderPlaced('plain'),
      { event: orderPlaced('z again'), dedupeKey: 'z' },
    ])
    expect(ids[1]).toBe(before)
    expect(ids[3]).toBe(ids[0])
    expect((await events()).map((row) => row.text)).toEqual(['"before"', '"z"', '"plain"'])
  })

  test('gives options of the call to every event; those of an event come first', async () => {
    const dueAt = new Date('2031-01-01T00:00:00Z')
    await publishMany(sql, [orderPlaced(1), { event: orderPlaced(2), headers: { own: 'yes' } }], {
      dueAt,
      headers: { all: 'yes' },
    })
    expect(await events()).toMatchObject([
      { due_at: dueAt, headers: { all: 'yes' } },
      { due_at: dueAt, headers: { own: 'yes' } },
    ])
  })

  test('takes no events at all', async () => {
    expect(await publishMany(sql, [])).toEqual([])
    expect(await publishMany(sql, new Set<OutgoingEvent>())).toEqual([])
  })

  test('publishes 100,000 in one transaction, never holding more than a few chunks', async () => {
    let taken = 0
    let sent = 0
    let furthest = 0
    let statements = 0
    function* many(): Generator<OutgoingEvent> {
      for (; taken < 100_000; taken++) {
        furthest = Math.max(furthest, taken - sent)
        yield orderPlaced(taken)
      }
    }
    const ids = await sql.begin((tx) =>
      publishMany(
        {
          query: async (text: string, values: (string | null)[]) => {
            const rows = await tx.unsafe(text, values)
            if (text.includes('publish')) {
              sent += values[0]?.split('\n').length ?? 0
              statements += 1
            }
            return { rows }
          },
        },
        many(),
      ),
    )
    expect(new Set(ids).size).toBe(100_000)
    expect(
      await sql`
      select count(*)::int as n, count(distinct xid)::int as transactions, max(published_at) = min(published_at) as together
      from loopless.event`,
    ).toEqual([{ n: 100_000, transactions: 1, together: true }])
    const wrong = await sql`
      select from unnest(${ids}::bigint[]) with ordinality i (id, n) join loopless.event e using (id)
      where e.payload::text::bigint <> i.n - 1`
    expect(wrong).toHaveLength(0)
    expect(statements).toBeGreaterThan(10)
    expect(furthest).toBeLessThan(10_000)
  })

  test('bounds a statement by bytes', async () => {
    const sizes: number[] = []
    const big = { text: 'é'.repeat(250_000) }
    await sql.begin((tx) =>
      publishMany(
        {
          query: (text: string, values: (string | null)[]) => {
            sizes.push(Buffer.byteLength(values.join('')))
            return tx.unsafe(text, values)
          },
        },
        Array.from({ length: 30 }, () => orderPlaced(big)),
      ),
    )
    expect(await countEvents()).toBe(30)
    expect(Math.max(...sizes)).toBeLessThan(4.2 * 1024 * 1024)
  })

  describe('of several chunks', () => {
    function* manyThen(last: () => OutgoingEvent): Generator<OutgoingEvent> {
      for (let i = 0; i < 7_000; i++) yield orderPlaced(i)
      yield last()
    }
    const bad = () => orderPlaced(1n)

    test('writes nothing when a later event is not valid, and the transaction goes on', async () => {
      await sql.begin(async (tx) => {
        await publish(tx, orderPlaced('before'))
        const error = await errorOf(publishMany(tx, manyThen(bad)))
        expect(error).toMatchObject({
          code: 'NOT_SERIALIZABLE',
          message: expect.stringContaining('Event 7000 of publishMany: '),
        })
        await publish(tx, orderPlaced('after'))
      })
      expect((await events()).map((row) => row.text)).toEqual(['"before"', '"after"'])
    })

    test('writes nothing when the database refuses a later one, and the transaction goes on', async () => {
      await sql.begin(async (tx) => {
        await tx`set local loopless.max_payload_bytes = 1000`
        const error = await errorOf(
          publishMany(
            tx,
            manyThen(() => orderPlaced('x'.repeat(1000))),
          ),
        )
        expect(error).toMatchObject({ code: 'PAYLOAD_TOO_LARGE' })
        await publish(tx, orderPlaced('after'))
      })
      expect((await events()).map((row) => row.text)).toEqual(['"after"'])
    })

    test('begins a transaction of its own when the client is in none', async () => {
      expect(await errorOf(publishMany(sql, manyThen(bad)))).toBeInstanceOf(InvalidEventError)
      expect(await countEvents()).toBe(0)
      await publishMany(
        sql,
        manyThen(() => orderPlaced('last')),
      )
      expect(
        await sql`select count(*)::int as n, count(distinct xid)::int as transactions from loopless.event`,
      ).toEqual([{ n: 7_001, transactions: 1 }])
    })

    test('asks for a transaction when the client cannot begin one, and ends the iteration', async () => {
      let isEnded = false
      function* watched(): Generator<OutgoingEvent> {
        try {
          yield* manyThen(bad)
        } finally {
          isEnded = true
        }
      }
      const reserved = await sql.reserve()
      const error = await errorOf(publishMany(reserved, watched()))
      reserved.release()
      expect(error).toBeInstanceOf(InvalidOptionError)
      expect(error).toMatchObject({ message: expect.stringMatching(/^Expected tx to be in a transaction/) })
      expect(isEnded).toBe(true)
      expect(await countEvents()).toBe(0)
    })

    test('passes on what the iterable throws and writes nothing', async () => {
      const broken = () => {
        throw new RangeError('source broke')
      }
      expect(await errorOf(publishMany(sql, manyThen(broken)))).toBeInstanceOf(RangeError)
      expect(await countEvents()).toBe(0)
    })
  })
})

describe('bad input', () => {
  const cyclic: Record<string, unknown> = { items: [{}] }
  cyclic['items'] = [{ parent: cyclic }]
  let deep: unknown = 1
  for (let i = 0; i < 20_000; i++) deep = [deep]
  const orderSchemas = {
    zod: z.object({ items: z.array(z.object({ sku: z.string() })) }),
    valibot: v.object({ items: v.array(v.object({ sku: v.string() })) }),
  }

  const expectRefused = async (event: OutgoingEvent, expected: object, options?: object): Promise<void> => {
    const inTransaction = await sql.begin(async (tx) => {
      const one = await errorOf(publish(tx, event, options))
      // a good one before it: nothing of the call is written
      const many = await errorOf(publishMany(tx, [orderPlaced('good'), { event, ...options }]))
      // checked before anything was sent, so the transaction is not aborted
      await tx`select 1`
      return { one, many }
    })
    expect(inTransaction.one).toBeInstanceOf(InvalidEventError)
    expect(inTransaction.one).toMatchObject(expected)
    const { message, ...rest } = expected as { message?: string }
    expect(inTransaction.many).toMatchObject(
      message ? { ...rest, message: `Event 1 of publishMany: ${message}` } : rest,
    )
    expect(await countEvents()).toBe(0)
  }

  test.for(Object.entries(orderSchemas))(
    'payload that does not fit a %s schema: its issues with paths',
    async ([, schema]) => {
      const event = defineEvent(
        'order.placed',
        schema,
      )({ items: [{ sku: 'A' }, { sku: 2 as unknown as string }] })
      await expectRefused(event, {
        code: 'INVALID_PAYLOAD',
        eventName: 'order.placed',
        issues: [{ message: expect.stringMatching(/^Invalid/), path: ['items', 1, 'sku'] }],
      })
      const error = (await errorOf(publish(sql, event))) as Error
      expect(error.message).toMatch(
        /^The payload of order\.placed does not fit its schema: Invalid .+ at items\[1\]\.sku\.$/,
      )
    },
  )

  test('payload that an asynchronous schema refuses', async () => {
    const schema = z
      .object({ n: z.number() })
      .refine(async ({ n }) => n > 0, { path: ['n'], error: 'Too small' })
    await expectRefused(defineEvent('order.placed', schema)({ n: 0 }), {
      code: 'INVALID_PAYLOAD',
      issues: [{ message: 'Too small', path: ['n'] }],
    })
    await publishMany(sql, [
      defineEvent('order.placed', schema)({ n: 1 }),
      defineEvent('order.placed', schema)({ n: 2 }),
    ])
    expect(await countEvents()).toBe(2)
  })

  test('payload that fits only until it is JSON, so that no handler could ever take it', async () => {
    const event = defineEvent('order.placed', z.object({ at: z.date() }))({ at: new Date(0) })
    await expectRefused(event, {
      code: 'INVALID_PAYLOAD',
      issues: [{ path: ['at'] }],
    })
    const error = (await errorOf(publish(sql, event))) as Error
    expect(error.message).toContain('It fits until it is turned into JSON')
    await publish(sql, defineEvent('order.placed', z.object({ at: z.coerce.date() }))({ at: new Date(0) }))
    expect((await events())[0]?.text).toBe('{"at":"1970-01-01T00:00:00.000Z"}')
  })

  test('what a schema throws is passed on', async () => {
    const schema = z.string().transform(() => {
      throw new RangeError('broken schema')
    })
    expect(await errorOf(publish(sql, defineEvent('a', schema)('x')))).toBeInstanceOf(RangeError)
    expect(await countEvents()).toBe(0)
  })

  test('a name that is not valid', async () => {
    for (const name of ['Order.Placed', '', 'a..b', 'x'.repeat(201), 'a\n']) {
      await expectRefused({ ...orderPlaced(1), name }, { code: 'INVALID_NAME', eventName: name })
    }
  })

  test('what is not an event', async () => {
    const start = 'Expected an event, made by calling what defineEvent returned with a payload, got'
    for (const [given, got] of [
      [orderPlaced, 'the definition of order.placed itself'],
      [{ name: 'order.placed', payload: {} }, 'object'],
      [null, 'null'],
      [undefined, 'undefined'],
    ]) {
      await expectRefused(given as OutgoingEvent, { code: 'INVALID_OPTION', message: `${start} ${got}.` })
    }
  })

  test('a payload over the limit, in bytes of UTF-8', async () => {
    const kept = 'é'.repeat(524_287)
    await publish(sql, orderPlaced(kept))
    await sql`truncate loopless.event`
    await expectRefused(orderPlaced(`${kept}x`), {
      code: 'PAYLOAD_TOO_LARGE',
      message:
        'Expected the payload of order.placed to be at most 1048576 bytes, got 1048577. Publish a reference to large data, or raise maxPayloadBytes.',
    })
    await expectRefused(orderPlaced('12345'), { code: 'PAYLOAD_TOO_LARGE' }, { maxPayloadBytes: 6 })
    await publish(sql, orderPlaced('12345'), { maxPayloadBytes: 7 })
  })

  test('a payload over the limit of the database, which says what to do', async () => {
    const big = orderPlaced('x'.repeat(1_100_000))
    const options = { maxPayloadBytes: 2_000_000 }
    const many = (tx: postgres.ISql) => publishMany(tx, [orderPlaced(1), big], options)
    const each = (tx: postgres.ISql) => publishMany(tx, [{ event: big, dueAt: new Date() }], options)
    for (const attempt of [(tx: postgres.ISql) => publish(tx, big, options), many, each]) {
      const error = await errorOf(attempt(sql))
      expect(error).toBeInstanceOf(InvalidEventError)
      expect(error).toMatchObject({
        code: 'PAYLOAD_TOO_LARGE',
        message: expect.stringMatching(/1048576 bytes, got 1100002\. .*set loopless\.max_payload_bytes = /),
      })
    }
    expect(await countEvents()).toBe(0)
    await sql.begin(async (tx) => {
      await tx`set local loopless.max_payload_bytes = 2000000`
      for (const attempt of [(inner: postgres.ISql) => publish(inner, big, options), many, each])
        await attempt(tx)
    })
    expect(await countEvents()).toBe(4)
  })

  test.for<[string, unknown]>([
    ['got undefined', undefined],
    ['got a function', () => {}],
    ['got a symbol', Symbol('s')],
    ['found a bigint at the top level', 1n],
    ['found a bigint at items[1].price', { items: [{}, { price: 1n }] }],
    ['found a bigint at at', { at: { toJSON: () => 1n } }],
    ['found a cycle at items[0].parent', cyclic],
    [
      'it threw Error: no JSON here',
      {
        toJSON: () => {
          throw new Error('no JSON here')
        },
      },
    ],
    ['it threw RangeError: Maximum call stack size exceeded', deep],
  ])('a payload that JSON cannot carry: %s', async ([found, payload]) => {
    await expectRefused(orderPlaced(payload), {
      code: 'NOT_SERIALIZABLE',
      eventName: 'order.placed',
      message: `Expected the payload of order.placed to be serializable as JSON, ${found}.`,
    })
  })

  test('the same object twice is no cycle', async () => {
    const shared = { a: 1 }
    await publish(sql, orderPlaced([shared, shared]))
    expect((await events())[0]?.text).toBe('[{"a":1},{"a":1}]')
  })

  test.for<[object, string]>([
    [
      { dueAt: new Date(Number.NaN) },
      'dueAt of order.placed to be a valid Date in the years 1–9999, got an invalid Date.',
    ],
    [
      { dueAt: new Date(8.64e15) },
      'dueAt of order.placed to be a valid Date in the years 1–9999, got +275760-09-13T00:00:00.000Z.',
    ],
    [{ dueAt: '2030-01-01' }, 'dueAt of order.placed to be a valid Date, got "2030-01-01".'],
    [{ dueAt: null }, 'dueAt of order.placed to be a valid Date, got null.'],
    [{ dedupeKey: '' }, 'dedupeKey of order.placed to be 1–512 characters, got 0.'],
    [{ dedupeKey: 'x'.repeat(513) }, 'dedupeKey of order.placed to be 1–512 characters, got 513.'],
    [{ dedupeKey: 7 }, 'dedupeKey of order.placed to be 1–512 characters, got 7.'],
    [{ dedupeKey: 'a\0b' }, 'dedupeKey of order.placed to be without NUL characters, got one.'],
    [{ dedupeKey: 'a\ud800' }, 'dedupeKey of order.placed to be well-formed Unicode, got a lone surrogate.'],
    [{ dedupeSeconds: 0 }, 'dedupeSeconds of order.placed to be more than 0 and at most 3153600000, got 0.'],
    [
      { dedupeSeconds: '60' },
      'dedupeSeconds of order.placed to be more than 0 and at most 3153600000, got "60".',
    ],
    [
      { dedupeSeconds: Number.NaN },
      'dedupeSeconds of order.placed to be more than 0 and at most 3153600000, got NaN.',
    ],
    [{ maxPayloadBytes: 0.5 }, 'maxPayloadBytes of order.placed to be a whole number above 0, got 0.5.'],
    [{ headers: 'a=b' }, 'headers of order.placed to be an object of strings, got "a=b".'],
    [{ headers: { a: 1 } }, 'header "a" of order.placed to be a string, got 1.'],
    [{ headers: { a: ['x'] } }, 'header "a" of order.placed to be a string, got an array.'],
    [{ headers: { a: '\0' } }, 'header "a" of order.placed to be without NUL characters, got one.'],
    [
      { headers: { a: '\udc00' } },
      'header "a" of order.placed to be well-formed Unicode, got a lone surrogate.',
    ],
    [
      { headers: { '\0': '' } },
      'the name of header "\\u0000" of order.placed to be without NUL characters, got one.',
    ],
    [
      { headers: { a: 'x'.repeat(16_384) } },
      'headers of order.placed to be at most 16384 bytes of JSON, got 16392.',
    ],
    [
      { headers: new Headers({ a: 'b' }) },
      'headers of order.placed to be an object of strings, got something iterable (Object.fromEntries makes an object of it).',
    ],
  ])('an option out of range: %o', async ([options, message]) => {
    await expectRefused(orderPlaced(1), { code: 'INVALID_OPTION', message: `Expected ${message}` }, options)
  })

  test('options that are none, or that nobody knows', async () => {
    const known = 'dueAt, dedupeKey, dedupeSeconds, headers, maxPayloadBytes'
    for (const [options, expected] of [
      [null, 'an object, got null'],
      ['k', 'an object, got "k"'],
      [{ delaySeconds: 5 }, `some of ${known}, got "delaySeconds"`],
      [{ dueAt: new Date(0), dedupekey: 'k' }, `some of ${known}, got "dedupekey"`],
    ] as const) {
      const given = options as object
      const code = 'INVALID_OPTION'
      expect(await errorOf(publish(sql, orderPlaced(1), given))).toMatchObject({
        code,
        message: `Expected the options of order.placed to be ${expected}.`,
      })
      expect(await errorOf(publishMany(sql, [orderPlaced(1)], given))).toMatchObject({
        code,
        message: `Expected the options of every event to be ${expected}.`,
      })
    }
    const misspelt = { event: orderPlaced(1), dedupekey: 'k' }
    expect(await errorOf(publishMany(sql, [misspelt]))).toMatchObject({
      code: 'INVALID_OPTION',
      message: `Event 0 of publishMany: Expected the options of order.placed to be some of ${known}, got "dedupekey".`,
    })
    expect(await countEvents()).toBe(0)
  })

  test('one event, or none, where publishMany takes many', async () => {
    for (const [events, got] of [
      [orderPlaced(1), 'object'],
      [null, 'null'],
      [undefined, 'undefined'],
    ] as const) {
      expect(await errorOf(publishMany(sql, events as never))).toMatchObject({
        code: 'INVALID_OPTION',
        message: `Expected the events of publishMany to be an array or another iterable, got ${got}. One event alone is for publish.`,
      })
    }
  })

  test('accepts options at their bounds', async () => {
    const dedupeKey = '\u{10ffff}'.repeat(256)
    await publish(sql, orderPlaced(1), {
      dueAt: new Date('9999-12-31T23:59:59.999Z'),
      dedupeKey,
      dedupeSeconds: 3_153_600_000,
      headers: { a: 'x'.repeat(16_376) },
    })
    await publishMany(sql, [
      { event: orderPlaced(2), dedupeKey: 'x'.repeat(512), dueAt: new Date('0001-01-01T00:00:00Z') },
    ])
    expect(await sql`select key from loopless.dedupe_key order by event_id`).toEqual([
      { key: dedupeKey },
      { key: 'x'.repeat(512) },
    ])
  })

  test('a dedupe key for all of publishMany', async () => {
    const error = await errorOf(publishMany(sql, [orderPlaced(1)], { dedupeKey: 'k' } as object))
    expect(error).toMatchObject({ code: 'INVALID_OPTION' })
  })

  test('a client that is none', async () => {
    for (const tx of [null, undefined, {}, 'sql', () => {}]) {
      expect(await errorOf(publish(tx as never, orderPlaced(1)))).toBeInstanceOf(InvalidOptionError)
      expect(await errorOf(publishMany(tx as never, [orderPlaced(1)]))).toBeInstanceOf(InvalidOptionError)
    }
    const silent = { query: async () => 'no rows' }
    expect(await errorOf(publish(silent, orderPlaced(1)))).toBeInstanceOf(DatabaseError)
  })

  test('a database without the schema: run loopless migrate', async () => {
    const name = `loopless_bare_${randomUUID().slice(0, 8)}`
    await sql`create database ${sql(name)} template template0`
    const bare = connect({ database: name, max: 1 })
    for (const attempt of [publish(bare, orderPlaced(1)), publishMany(bare, [orderPlaced(1)])]) {
      const error = await errorOf(attempt)
      expect(error).toBeInstanceOf(SchemaMissingError)
      expect(error).toMatchObject({
        code: 'SCHEMA_MISSING',
        message: expect.stringContaining('run "loopless migrate"'),
      })
    }
    await migrate(bare)
    await publish(bare, orderPlaced(1))
    await bare.end()
    await sql`drop database ${sql(name)}`
  })
})

describe('by SQL', () => {
  test('takes a name and a payload', async () => {
    const [row] = await sql`select loopless.publish('order.placed', '{"orderId": 1}'::json) as id`
    expect(await events()).toEqual([
      { id: row?.['id'], name: 'order.placed', text: '{"orderId": 1}', headers: null, due_at: null },
    ])
  })

  test('takes the rest by name', async () => {
    const first = await sql`
      select loopless.publish('order.placed', '{}', dedupe_key => 'k', dedupe_for => '1 hour', headers => '{"a": "b"}', due_at => '2030-01-01Z') as id`
    const again =
      await sql`select loopless.publish(name => 'order.placed', payload => '1', dedupe_key => 'k') as id`
    expect(again).toEqual(first)
    expect(await events()).toMatchObject([{ headers: { a: 'b' }, due_at: new Date('2030-01-01T00:00:00Z') }])
    expect(await sql`select (expires_at - now())::text as left from loopless.dedupe_key`).toEqual([
      { left: expect.stringMatching(/^00:59/) },
    ])
    expect(await sql`select reason from loopless.delivery`).toEqual([{ reason: 'delayed' }])
  })

  test('is part of the transaction and of its savepoints', async () => {
    await sql.begin(async (tx) => {
      await tx`select loopless.publish('order.placed', '1')`
      await tx`savepoint a`
      await tx`select loopless.publish('order.placed', '2', dedupe_key => 'k')`
      await tx`rollback to a`
      await tx`select loopless.publish('order.placed', '3', dedupe_key => 'k')`
    })
    expect((await events()).map((row) => row.text)).toEqual(['1', '3'])
  })

  test.for<[string, string, string]>([
    ['LL001', `'Order placed', '{}'`, `got 'Order placed'.`],
    ['LL001', `null, '{}'`, 'got null.'],
    ['LL001', `repeat('x', 201), '{}'`, 'Expected an event name of 1-200 characters'],
    ['LL001', `E'a\\n', '{}'`, 'Expected an event name'],
    ['LL002', `'a', to_json(repeat('x', 1048576))`, 'at most 1048576 bytes, got 1048578.'],
    ['LL003', `'a', null`, 'to be JSON, got SQL null.'],
    ['LL004', `'a', '{}', headers => '[]'`, 'to be a JSON object of strings, got array.'],
    ['LL004', `'a', '{}', headers => '{"a": 1}'`, 'to be a JSON object of strings, got {"a": 1}.'],
    ['LL004', `'a', '{}', headers => json_build_object('a', repeat('x', 16384))`, 'at most 16384 bytes, got'],
    ['22P05', `'a', '{}', headers => '{"a": "\\u0000"}'`, 'unsupported Unicode escape sequence'],
    ['LL004', `'a', '{}', dedupe_key => ''`, 'to be 1-512 characters, got 0.'],
    ['LL004', `'a', '{}', dedupe_key => repeat('x', 513)`, 'to be 1-512 characters, got 513.'],
    ['LL004', `'a', '{}', dedupe_key => 'k', dedupe_for => '0'`, 'for more than 0 seconds, got 00:00:00.'],
    ['LL004', `'a', '{}', dedupe_key => 'k', dedupe_for => null`, 'for more than 0 seconds, got null.'],
    ['22P02', `'a', 'no json'`, 'invalid input syntax for type json'],
  ])('refuses with %s: publish(%s)', async ([sqlState, args, message]) => {
    const error = await errorOf(sql.unsafe(`select loopless.publish(${args})`))
    expect(error).toMatchObject({ code: sqlState, message: expect.stringContaining(message) })
    expect(await countEvents()).toBe(0)
    expect(await countKeys()).toBe(0)
  })

  describe('as a role that may do nothing else', () => {
    const role = `loopless_publisher_${randomUUID().slice(0, 8)}`
    const signatures = [
      'publish(text, json, timestamptz, text, json, interval)',
      'publish_many(text, text, text)',
      'publish_each(text, text, json)',
    ]
    const asPublisher = <Result>(work: (tx: postgres.TransactionSql) => Promise<Result>) =>
      sql.begin(async (tx) => {
        await tx`set local role ${tx(role)}`
        return work(tx)
      })
    afterAll(async () => {
      await sql`drop owned by ${sql(role)}`
      await sql`drop role ${sql(role)}`
    })
    beforeEach(async () => {
      const [row] = await sql`select from pg_roles where rolname = ${role}`
      if (row) return
      await sql`create role ${sql(role)}`
      await sql`grant usage on schema loopless to ${sql(role)}`
      for (const signature of signatures)
        await sql.unsafe(`grant execute on function loopless.${signature} to ${role}`)
    })

    test('publishes with every option', async () => {
      const options = { dueAt: new Date(), dedupeKey: 'k', headers: { a: 'b' } }
      await asPublisher(async (tx) => {
        await publish(tx, orderPlaced(1), options)
        await publishMany(tx, [orderPlaced(2), { event: orderPlaced(3), ...options, dedupeKey: 'l' }])
        await publishMany(tx, [orderPlaced(4)])
      })
      expect(await countEvents()).toBe(4)
    })

    test('may not read or write any table, nor call what publish calls', async () => {
      for (const statement of [
        'select from loopless.event',
        `insert into loopless.event (name, payload) values ('a', '{}')`,
        'delete from loopless.dedupe_key',
        `select loopless.hold_key('a', 'k', 1, '1 day')`,
        `select loopless.check_headers('a', '{}')`,
        'select loopless.next_due()',
      ]) {
        expect(await errorOf(asPublisher((tx) => tx.unsafe(statement)))).toMatchObject({ code: '42501' })
      }
    })

    test('nobody may publish without the right to', async () => {
      const other = `${role}_other`
      await sql`create role ${sql(other)}`
      await sql`grant usage on schema loopless to ${sql(other)}`
      for (const signature of signatures) {
        const [row] =
          await sql`select has_function_privilege(${other}, ${`loopless.${signature}`}, 'execute') as may`
        expect(row).toEqual({ may: false })
      }
      await sql`drop owned by ${sql(other)}`
      await sql`drop role ${sql(other)}`
    })

    test('cannot be led astray by a search path, temporary objects or operators of its own', async () => {
      await sql`create schema if not exists hostile`
      await sql.unsafe(`grant all on schema hostile to ${role}`)
      await asPublisher(async (tx) => {
        for (const statement of [
          `create function hostile.length(text) returns integer language sql as 'select 1 / 0'`,
          `create function hostile.now() returns timestamptz language sql as $$ select 'infinity'::timestamptz $$`,
          `create function hostile.nextval(text) returns bigint language sql as 'select 666::bigint'`,
          `create function hostile.never(text, text) returns boolean language sql as 'select (1 / 0) = 1'`,
          'create operator hostile.!~ (leftarg = text, rightarg = text, function = hostile.never)',
          'create table hostile.event (id bigint, name text, payload json)',
          'create temporary table event (id bigint, name text, payload json)',
          'create temporary table dedupe_key (event_name text, key text, event_id bigint, expires_at timestamptz)',
          'create temporary table delivery (event_xid xid8, event_id bigint, reason text, due_at timestamptz)',
          'set local search_path = pg_temp, hostile, pg_catalog, loopless',
        ]) {
          await tx.unsafe(statement)
        }
        const options = { dueAt: new Date(0), dedupeKey: 'k', headers: { a: 'b' } }
        await tx`select loopless.publish('order.placed', '1')`
        await tx`select loopless.publish('order.placed', '2', dedupe_key => 'j', due_at => '2030-01-01', headers => '{"a": "b"}')`
        await publish(tx, orderPlaced(3), options)
        await publishMany(tx, [orderPlaced(4)])
        await publishMany(tx, [{ event: orderPlaced(5), ...options, dedupeKey: 'l' }])
        for (const table of ['hostile.event', 'pg_temp.event', 'pg_temp.dedupe_key', 'pg_temp.delivery']) {
          expect(await tx.unsafe(`select from ${table}`)).toHaveLength(0)
        }
      })
      expect((await events()).map((row) => row.text)).toEqual(['1', '2', '3', '4', '5'])
      expect(
        await sql`select count(*)::int as n from loopless.dedupe_key where expires_at between now() + '6 days' and now() + '7 days'`,
      ).toEqual([{ n: 3 }])
      await sql`drop schema hostile cascade`
    })
  })
})
