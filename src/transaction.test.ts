import { setImmediate as turn } from 'node:timers/promises'
import { beforeEach, describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { startProxy } from '../tests/support/proxy.ts'
import { connect as openClient, type TransactionSql } from './db/client.ts'
import { discard, TransactionEndedError } from './errors.ts'
import { defineEvent } from './event.ts'
import {
  type BatchEvent,
  defineHandler,
  type Handler,
  type HandlerContext,
  type HandlerOptions,
} from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import { poll } from './poll.ts'
import { publish } from './publish.ts'
import { publishMany } from './publish-many.ts'
import type { PollOptions } from './step.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql, poller, connect } = bus

await sql`create table effect (n integer not null, note text not null)`
await sql`create table parent (n integer primary key)`
await sql`
  create table child (
    n integer references parent deferrable initially deferred,
    constraint child_positive check (n > 0))`

beforeEach(async () => {
  await sql`truncate effect, parent, child`
})

const counted = defineEvent<{ n: number }>('counted')
type Context = HandlerContext & { readonly tx: TransactionSql }

/** A transactional handler that notes the event's number in the table `effect`, and then does something. */
function writing(
  act: (n: number, tx: TransactionSql, context: Context) => unknown = () => {},
  options: SingleOptions = {},
): Handler {
  return defineHandler(
    counted,
    { jitter: 0, ...options, transactional: true },
    async ({ payload }, context) => {
      await context.tx`insert into effect (n, note) values (${payload.n}, 'noted')`
      return act(payload.n, context.tx, context)
    },
  )
}

/** The same, misbehaving for event 2 of 3. */
function misbehaving(act: (tx: TransactionSql) => unknown, options: SingleOptions = {}): Handler {
  return writing((n, tx) => (n === 2 ? act(tx) : undefined), options)
}

async function effects(): Promise<number[]> {
  const rows = await sql<{ n: number }[]>`select n from effect order by n`
  return rows.map(({ n }) => n)
}

/** Publishes three events and polls once: 1 and 3 succeed, 2 fails and leaves nothing behind. */
async function onlyTheSecondFails(
  h: Handler,
  recorded: object,
  options: Partial<PollOptions> = {},
): Promise<void> {
  await bus.publish('counted', 1, 2, 3)
  expect(await bus.poll({ h }, options)).toMatchObject({ claimed: 3, succeeded: 2, retried: 1 })
  expect(await effects()).toEqual([1, 3])
  expect(await bus.attempts()).toMatchObject([{ n: 2, attempt: 1, ...recorded }])
  expect(await bus.deliveries()).toMatchObject([
    { n: 2, handler: 'h', attempt: 1, dueAt: later(15), leased: false },
  ])
  expect(await bus.openBatches()).toEqual([])
}

describe('effects of handlers', () => {
  it('commit with the settling, all of a poll together', async () => {
    const transactions = new Set<string>()
    await bus.publish('counted', 1, 2, 3)
    const h = writing(async (_n, tx) => {
      const [row] = await tx<{ xid: string }[]>`select pg_current_xact_id()::text as xid`
      transactions.add(row?.xid ?? '')
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 3 })
    expect(await effects()).toEqual([1, 2, 3])
    expect(transactions.size).toBe(1)
    const [batch] = await sql`select xmin::text as xid from loopless.batch order by id desc limit 1`
    expect([...transactions]).toEqual([batch?.['xid']])
  })

  it('are seen by nobody before', async () => {
    const seen: number[][] = []
    await bus.publish('counted', 1, 2)
    await bus.poll({ h: writing(async () => void seen.push(await effects())) })
    expect(seen).toEqual([[], []])
  })

  it('of a delivery commit with it too', async () => {
    await bus.publish('counted', 1)
    const h = writing((_n, _tx, { attempt }) => {
      if (attempt === 1) throw new Error('no')
    })
    await bus.poll({ h })
    expect(await effects()).toEqual([])
    await bus.poll({ h }, { at: later(15) })
    expect(await effects()).toEqual([1])
    expect(await bus.deliveries()).toEqual([])
  })

  it('happen once for each handler of an event', async () => {
    await bus.publish('counted', 1)
    expect(
      await bus.poll({ a: writing(), b: writing(), plain: defineHandler('*', {}, () => {}) }),
    ).toMatchObject({ succeeded: 3 })
    expect(await effects()).toEqual([1, 1])
  })

  it('are rolled back when the lease was lost', async () => {
    await bus.publish('counted', 1)
    const h = writing(async (_n, _tx, { now: at }) => {
      if (at.getTime() === now.getTime()) await poll(later(76), { sql, handlers: defineHandlers({ h }) })
    })
    await expect(bus.poll({ h })).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(await effects()).toEqual([1])
    expect(await bus.openBatches()).toEqual([])
  })

  it('are rolled back when the connection is lost, and happen in the next poll', async () => {
    await bus.publish('counted', 1, 2)
    let isLost = false
    const h = writing(async (n, tx) => {
      if (n === 1 || isLost) return
      isLost = true
      const [row] = await tx<{ pid: number }[]>`select pg_backend_pid() as pid`
      await sql`select pg_terminate_backend(${row?.pid ?? 0})`
      await tx`select 1`
    })
    await expect(bus.poll({ h })).rejects.toMatchObject({ code: 'DATABASE_FAILED' })
    expect(await effects()).toEqual([])
    expect(await bus.poll({ h })).toMatchObject({ claimed: 2, succeeded: 2, repaired: 0 })
    expect(await effects()).toEqual([1, 2])
    expect(await bus.attempts()).toEqual([])
  })
})

describe('what a handler changes', () => {
  it('of the payload is not there when it runs again in the same poll', async () => {
    await bus.publish('counted', 1, 2)
    const h = defineHandler(counted, { transactional: true }, async ({ payload }, { tx }) => {
      if (payload.n === 2) throw new Error('no')
      ;(payload as { n: number }).n += 100
      await tx`insert into effect (n, note) values (${payload.n}, 'noted')`
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await effects()).toEqual([101])
  })

  it('of the session does not outlast its poll', async () => {
    const settings = () =>
      poller`select current_setting('search_path') as path, current_setting('statement_timeout') as timeout, current_user as role`
    const before = await settings()
    await bus.publish('counted', 1)
    const h = writing(
      (_n, tx) =>
        tx`select set_config('search_path', 'nowhere', false), set_config('statement_timeout', '60001', false)`,
    )
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1 })
    expect(await settings()).toEqual(before)
  })
})

describe('a handler that fails', () => {
  it('leaves nothing behind, and its neighbours commit', async () => {
    const h = misbehaving(() => Promise.reject(new RangeError('no')))
    await onlyTheSecondFails(h, { error: 'RangeError', message: 'no' })
  })

  it('may fail at once, too', async () => {
    await bus.publish('counted', 1, 2)
    const h = defineHandler(counted, { transactional: true }, ({ payload }, { tx }) => {
      if (payload.n === 1) throw new Error('no')
      return tx`insert into effect values (${payload.n}, 'noted')`
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await effects()).toEqual([2])
  })

  it('runs once a poll, however many of its neighbours fail', async () => {
    const calls: number[] = []
    await bus.publish('counted', 1, 2, 3, 4)
    const h = writing((n) => {
      calls.push(n)
      if (n > 1) throw new Error(`no ${n}`)
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 3 })
    expect(calls).toEqual([1, 2, 1, 3, 4])
    expect(await effects()).toEqual([1])
    expect(await bus.attempts()).toHaveLength(3)
  })

  it('ends in the dead letters like any other', async () => {
    await bus.publish('counted', 1, 2)
    const h = misbehaving(() => Promise.reject(discard('old')))
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, dead: 1 })
    expect(await bus.deadLetters()).toMatchObject([{ n: 2, reason: 'discarded' }])
    expect(await effects()).toEqual([1])
  })

  it('beside a plain one of the same event is tried again alone', async () => {
    const calls: string[] = []
    await bus.publish('counted', 2)
    const plain = defineHandler(counted, {}, () => void calls.push('plain'))
    const h = misbehaving(() => {
      calls.push('transactional')
      throw new Error('no')
    })
    expect(await bus.poll({ plain, h })).toMatchObject({ succeeded: 1, retried: 1 })
    await bus.poll({ plain, h }, { at: later(15) })
    expect(calls).toEqual(['plain', 'transactional', 'transactional'])
  })
})

describe('a statement that fails', () => {
  it('is the handler’s failure, and is recorded', async () => {
    const h = misbehaving((tx) => tx`select 1 / 0`)
    await onlyTheSecondFails(h, { error: 'PostgresError', message: 'division by zero' })
  })

  it('is its failure also when it swallows the error', async () => {
    const h = misbehaving((tx) => tx`select 1 / 0`.catch(() => {}))
    await onlyTheSecondFails(h, { error: 'PostgresError', message: 'division by zero' })
  })

  it('is its failure also when it forgets to await it', async () => {
    const h = misbehaving((tx) => void tx`select 1 / 0`.execute())
    await onlyTheSecondFails(h, { error: 'PostgresError', message: 'division by zero' })
  })

  it('is its failure also when it wraps the error, and not that of the next', async () => {
    await bus.publish('counted', 1, 2, 3)
    const h = writing(async (n, tx) => {
      const failing = n === 2 ? tx`select 1 / 0` : tx`select 1`
      await failing.catch((cause: unknown) => {
        throw new Error(`wrapped for ${n}`, { cause })
      })
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2, retried: 1 })
    expect(await bus.attempts()).toMatchObject([
      {
        n: 2,
        message: 'wrapped for 2',
        stack: expect.stringContaining('caused by: PostgresError: division'),
      },
    ])
  })

  it('is its failure alone when it swallows it and the next wraps what it gets', async () => {
    await bus.publish('counted', 1, 2)
    const h = defineHandler(counted, { transactional: true }, async ({ payload }, { tx }) => {
      if (payload.n === 1) return tx`select 1 / 0`.catch(() => {})
      return tx`insert into effect values (2, 'noted')`.catch((cause: unknown) => {
        throw new Error('not mine', { cause })
      })
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await bus.attempts()).toMatchObject([{ n: 1, message: 'division by zero' }])
    expect(await effects()).toEqual([2])
  })

  it('in a savepoint may be swallowed: the rest commits', async () => {
    await bus.publish('counted', 1, 2)
    const calls: number[] = []
    const h = writing(async (n, tx) => {
      calls.push(n)
      await tx.savepoint((inner) => inner`insert into effect values (${n + 10}, 'kept')`)
      await tx
        .savepoint('named', async (inner) => {
          await inner`insert into effect values (${n + 20}, 'lost')`
          await inner.savepoint((innermost) => innermost`select 1 / 0`)
        })
        .catch(() => {})
      await tx`insert into effect values (${n + 30}, 'kept')`
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2 })
    expect(await effects()).toEqual([1, 2, 11, 12, 31, 32])
    expect(calls).toEqual([1, 2])
  })

  it('at the commit, as a deferred constraint does, is the failure of whose it is', async () => {
    await sql`insert into parent values (7)`
    const h = writing((n, tx) => tx`insert into child values (${n === 2 ? 8 : 7})`)
    await onlyTheSecondFails(h, { error: 'PostgresError', message: expect.stringContaining('child_n_fkey') })
  })

  it('leaves deferred constraints deferred for the others', async () => {
    await bus.publish('counted', 1, 2, 3)
    const h = writing(async (n, tx) => {
      if (n === 1) throw new Error('no')
      await tx`insert into child values (${n})`
      await tx`insert into parent values (${n})`
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2, retried: 1 })
    expect(await sql`select n from child order by n`).toEqual([{ n: 2 }, { n: 3 }])
  })

  it('because of a deadlock is tried again in the same poll, uncharged', async () => {
    await sql`insert into parent values (1), (2)`
    const other = await connect({ max: 1 }).reserve()
    await other`begin`
    await other`set local deadlock_timeout = '10s'`
    await other`select from parent where n = 1 for update`
    const calls: number[] = []
    let blocked: PromiseLike<unknown> = Promise.resolve()
    await bus.publish('counted', 1)
    const h = writing(async (n, tx) => {
      calls.push(n)
      if (calls.length === 2) await blocked // or this one may get the row first, and deadlock once more
      await tx`set local deadlock_timeout = '10ms'`
      await tx`select from parent where n = 2 for update`
      if (calls.length === 1) {
        blocked = other`select from parent where n = 2 for update`.execute()
        await expect
          .poll(
            () =>
              sql`select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
          )
          .toHaveLength(1)
      }
      await tx`select from parent where n = 1 for update`
    })
    const polled = bus.poll({ h })
    await expect.poll(() => calls.length).toBe(2)
    await blocked
    await other`commit`
    other.release()
    expect(await polled).toMatchObject({ succeeded: 1 })
    expect(await bus.attempts()).toEqual([])
    expect(await effects()).toEqual([1])
  })
})

describe('a handler that takes too long', () => {
  const timeoutSeconds = 0.25

  it('in a statement has it cancelled; its neighbours commit', async () => {
    const began = performance.now()
    const h = misbehaving((tx) => tx`select pg_sleep(60)`, { timeoutSeconds })
    await onlyTheSecondFails(h, {
      error: 'TimeoutError',
      message: 'Handler h did not end within its 0.25 s (timeoutSeconds).',
    })
    expect(performance.now() - began).toBeLessThan(10_000)
  })

  it('in a statement that it did not wait for has it cancelled too', async () => {
    const h = misbehaving((tx) => void tx`select pg_sleep(60)`.execute(), { timeoutSeconds })
    await onlyTheSecondFails(h, { error: 'TimeoutError' })
  })

  it('waiting for a lock is cancelled', async () => {
    await sql`insert into parent values (1)`
    const other = await connect({ max: 1 }).reserve()
    await other`begin`
    await other`select from parent for update`
    const h = misbehaving((tx) => tx`select from parent for update`, { timeoutSeconds })
    await onlyTheSecondFails(h, { error: 'TimeoutError' })
    await other`rollback`
    other.release()
  })

  it('outside the database is given up', async () => {
    const h = misbehaving(() => new Promise(() => {}), { timeoutSeconds })
    await onlyTheSecondFails(h, { error: 'TimeoutError' })
  })

  it('that fails by itself has what it left running cancelled', async () => {
    const began = performance.now()
    const h = misbehaving((tx) =>
      Promise.all([tx`select pg_sleep(60)`, turn().then(() => Promise.reject(new Error('no')))]),
    )
    await onlyTheSecondFails(h, { message: 'no' })
    expect(performance.now() - began).toBeLessThan(10_000)
  })

  it('has its statement cancelled also when a request to cancel is lost', async () => {
    const cancelCode = '\x04\xd2\x16\x2e'
    const proxy = await startProxy(bus.url)
    let requests = 0
    proxy.judge(({ type, text }) =>
      type === 'startup' && text.startsWith(cancelCode) && requests++ === 0 ? 'cut' : 'forward',
    )
    const client = openClient(proxy.url, { max: 1 })
    const began = performance.now()
    const h = misbehaving((tx) => tx`select pg_sleep(60)`, { timeoutSeconds })
    await onlyTheSecondFails(h, { error: 'TimeoutError' }, { sql: client })
    expect(performance.now() - began).toBeLessThan(10_000)
    expect(requests).toBeGreaterThan(1)
    await client.end({ timeout: 1 })
    await proxy.close()
  })

  it('when the poll must end is given up and charged; what was not started is not', async () => {
    await bus.publish('counted', 1, 2, 3)
    const h = misbehaving((tx) => tx`select pg_sleep(60)`)
    expect(await bus.poll({ h }, { limits: { seconds: 0.4 } })).toMatchObject({
      succeeded: 0,
      retried: 1,
      claimed: 3,
    })
    expect(await bus.attempts()).toMatchObject([
      { n: 2, message: expect.stringContaining('when its poll had to end') },
    ])
    expect(await effects()).toEqual([])
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2, nextDueAt: later(15) })
    expect(await effects()).toEqual([1, 3])
  })
})

describe('tx, once its handler has ended,', () => {
  /** A handler that lends its tx to whoever waits for it, and is given up for event 1. */
  function lending(lend: (tx: TransactionSql) => void): Handler {
    return writing(
      (n, tx) => {
        if (n !== 1) return
        lend(tx)
        return new Promise(() => {})
      },
      { timeoutSeconds: 0.25 },
    )
  }

  it('takes no statement any more, and nothing of it lands', async () => {
    const { promise: lent, resolve: lend } = Promise.withResolvers<TransactionSql>()
    await bus.publish('counted', 1, 2)
    const late = lent.then(async (tx) => {
      const made = tx`insert into effect values (90, 'made before, sent after')`
      const thrown: unknown[] = []
      while (thrown.length === 0) {
        await turn()
        try {
          tx('check')
        } catch (error) {
          thrown.push(error)
        }
      }
      const uses: (() => unknown)[] = [
        () => made,
        () => tx`insert into effect values (91, 'late')`,
        () => tx.unsafe("insert into effect values (92, 'late')"),
        () => tx.savepoint((inner) => inner`insert into effect values (93, 'late')`),
        () => tx.notify('late', 'x'),
        () => publish(tx, counted({ n: 94 })),
        () => tx.json({}),
      ]
      for (const use of uses) await (async () => use())().catch((error: unknown) => thrown.push(error))
      return thrown
    })
    expect(await bus.poll({ h: lending(lend) })).toMatchObject({ succeeded: 1, retried: 1 })
    const thrown = await late
    expect(thrown).toHaveLength(8)
    for (const error of thrown) expect(error).toBeInstanceOf(TransactionEndedError)
    expect(thrown[0]).toMatchObject({
      code: 'TRANSACTION_ENDED',
      message: expect.stringContaining('Handler h used its tx'),
    })
    expect(await effects()).toEqual([2])
    expect(await sql`select from loopless.event`).toHaveLength(2)
  })

  it('does not end a savepoint that was begun in time', async () => {
    const { promise: over, resolve: end } = Promise.withResolvers<void>()
    await bus.publish('counted', 1, 2)
    const h = writing((n, tx) => {
      if (n === 2) return end()
      void tx.savepoint(() => over).catch(() => {})
      return tx`select 1`
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2 })
    expect(await effects()).toEqual([1, 2])
  })

  it('refuses what a handler that forgot an await does next', async () => {
    const { promise: refused, resolve } = Promise.withResolvers<unknown>()
    await bus.publish('counted', 1, 2)
    const h = writing((n, tx) => {
      if (n === 2) return
      const forgotten = async (): Promise<void> => {
        await tx`insert into effect values (11, 'sent in time')`.execute()
        await tx`insert into effect values (12, 'sent too late')`
      }
      forgotten().catch(resolve)
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2 })
    expect(await refused).toBeInstanceOf(TransactionEndedError)
    expect(await effects()).toEqual([1, 2, 11])
  })
})

describe('a handler that ends its transaction itself', () => {
  it.each<[string, (tx: TransactionSql) => PromiseLike<unknown>]>([
    ['commit', (tx) => tx`commit`],
    ['a commit in another spelling', (tx) => tx` /* now */ -- or\n ; COMMIT WORK`],
    ['end', (tx) => tx.unsafe('end')],
    ['rollback', (tx) => tx`rollback`],
    ['rollback and chain', (tx) => tx`rollback and chain`],
    ['abort', (tx) => tx.unsafe('abort')],
    ['prepare transaction', (tx) => tx`prepare transaction 'mine'`],
    ['a fragment', (tx) => tx`${tx.unsafe('commit')}`],
  ])('is refused, and fails alone: %s', async (_what, end) => {
    await onlyTheSecondFails(misbehaving(end), {
      error: 'TransactionEndedError',
      message: expect.stringMatching(/^Handler h tried to end its transaction/),
    })
  })

  it.each<[string, (tx: TransactionSql) => PromiseLike<unknown>]>([
    ['in a second statement', (tx) => tx.unsafe('select 1; commit')],
    ['in a second statement that asks for the simple protocol', (tx) => tx`select 1; commit; begin`.simple()],
  ])('is refused by the server: %s', async (_what, end) => {
    await onlyTheSecondFails(misbehaving(end), { message: expect.stringContaining('multiple commands') })
  })

  it('is refused and goes on when it swallows that', async () => {
    await bus.publish('counted', 1, 2, 3)
    const h = misbehaving((tx) => tx`rollback`.catch(() => {}))
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 3 })
    expect(await effects()).toEqual([1, 2, 3])
  })

  it('is found out and charged, when it resets the settings that mark the transaction', async () => {
    await onlyTheSecondFails(
      misbehaving((tx) => tx`reset all`),
      { error: 'TransactionEndedError', message: expect.stringContaining('changed its role or settings') },
    )
  })

  it('is found out and charged, when it leaves a role behind that may not settle', async () => {
    const role = `loopless_low_${process.pid}`
    await sql`create role ${sql(role)}`
    try {
      await onlyTheSecondFails(
        misbehaving((tx) => tx.unsafe(`set local role ${role}`)),
        { error: 'TransactionEndedError', message: expect.stringContaining('changed its role or settings') },
      )
    } finally {
      await sql`drop role ${sql(role)}`
    }
  })

  it('is found out and charged, when it ends the savepoint that it runs in', async () => {
    await bus.publish('counted', 1, 2, 3)
    const h = writing(async (n, tx, { attempt }) => {
      if (n === 1) throw new Error('so that savepoints are used')
      if (n === 2 && attempt === 1)
        await tx.savepoint((inner) => inner`release savepoint loopless_unit`).catch(() => {})
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 2 })
    expect(await bus.attempts()).toMatchObject([{ n: 1 }, { n: 2, error: 'TransactionEndedError' }])
    expect(await effects()).toEqual([3])
  })

  it('may roll back to a savepoint of its own', async () => {
    await bus.publish('counted', 1)
    const h = writing(async (_n, tx) => {
      await tx`savepoint mine`
      await tx`insert into effect values (9, 'lost')`
      await tx`rollback to mine`
      await tx`Rollback Work To Savepoint mine`
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1 })
    expect(await effects()).toEqual([1])
  })
})

describe('what tx does not have', () => {
  it.each<[string, (tx: TransactionSql) => unknown]>([
    ['a cursor', (tx) => tx`select 1`.cursor(1, () => {})],
    ['a cursor to iterate over', (tx) => tx`select 1`.cursor()[Symbol.asyncIterator]().next()],
    ['a COPY from the client', (tx) => tx`copy effect from stdin`.writable()],
    ['a COPY to the client', (tx) => tx`copy effect to stdout`.readable()],
  ])('fails the handler: %s', async (_what, use) => {
    await onlyTheSecondFails(misbehaving(use), {
      error: 'InvalidOptionError',
      message: expect.stringContaining('a cursor or a COPY stream'),
    })
  })
})

describe('what tx has', () => {
  it('is the template, fragments, unsafe, json, arrays, rows one by one, and notifications of the transaction', async () => {
    const heard: string[] = []
    const { unlisten } = await sql.listen('heard', (payload) => heard.push(payload))
    await bus.publish('counted', 1, 2)
    const h = writing(async (n, tx) => {
      if (n === 2) throw new Error('no')
      const rows = [
        { n: 10, note: 'row' },
        { n: 11, note: 'row' },
      ]
      await tx`insert into effect ${tx(rows)}`
      await tx`insert into effect select n, 'array' from unnest(${tx.array([12, 13])}::int[]) n ${n === 1 ? tx`where n > 12` : tx``}`
      await tx`insert into effect select n, note from jsonb_to_recordset(${tx.json([{ n: 14, note: 'json' }])}) as x (n int, note text)`
      await tx`select n from effect where note = 'row' order by n`.forEach((row) => {
        heard.push(`row ${row['n']}`)
      })
      await tx.unsafe('insert into effect values ($1, $2)', [15, 'unsafe'])
      await tx.savepoint((inner) => [
        inner`insert into effect values (16, 'a')`,
        inner`insert into effect values (17, 'b')`,
      ])
      await tx.notify('heard', `from ${n}`)
    })
    await bus.poll({ h }, { limits: { events: 1 } })
    expect(await effects()).toEqual([1, 10, 11, 13, 14, 15, 16, 17])
    await expect.poll(() => heard).toEqual(['row 10', 'row 11', 'from 1'])
    await bus.poll({ h })
    await unlisten()
  })
})

describe('events that a handler publishes in its transaction', () => {
  const followed = defineEvent<{ n: number }>('followed')

  it('exist when it commits, once, however often it ran', async () => {
    const numbers: number[] = []
    await bus.publish('counted', 1, 2)
    const h = writing(async (n, tx) => {
      await publish(tx, followed({ n: n * 10 }))
      await publishMany(tx, [followed({ n: n * 10 + 1 }), followed({ n: n * 10 + 2 })])
      if (n === 2) throw new Error('no')
    })
    const next = defineHandler(followed, {}, ({ payload }) => void numbers.push(payload.n))
    expect(await bus.poll({ h, next })).toMatchObject({ claimed: 2, succeeded: 1, retried: 1 })
    expect(numbers).toEqual([])
    expect(await bus.poll({ h, next })).toMatchObject({ claimed: 3, succeeded: 3 })
    expect(numbers).toEqual([10, 11, 12])
  })

  it('may be delayed, and are gone when it fails at last', async () => {
    await bus.publish('counted', 1)
    const h = writing(
      async (_n, tx) => {
        await publish(tx, followed({ n: 1 }), { dueAt: later(1), dedupeKey: 'once' })
        throw new Error('no')
      },
      { maxAttempts: 1 },
    )
    expect(await bus.poll({ h })).toMatchObject({ dead: 1 })
    expect(await bus.deliveries()).toEqual([])
    expect(await sql`select from loopless.dedupe_key`).toEqual([])
    expect(await sql`select from loopless.event`).toHaveLength(1)
  })
})

describe('a batch handler in a transaction', () => {
  type Events = ReadonlyArray<BatchEvent<{ n: number }>>

  function batch(act: (events: Events, tx: TransactionSql) => unknown, options: SingleOptions = {}): Handler {
    return defineHandler(
      counted,
      { jitter: 0, ...options, batch: true, transactional: true },
      async (events, { tx }) => {
        const numbers = events.map(({ payload }) => payload.n)
        await tx`insert into effect select n, 'noted' from unnest(${numbers}::int[]) n`
        return (await act(events, tx)) as undefined
      },
    )
  }

  it('commits what it did for all of them with their settling', async () => {
    await bus.publish('counted', 1, 2, 3)
    expect(await bus.poll({ h: batch(() => {}) })).toMatchObject({ succeeded: 3 })
    expect(await effects()).toEqual([1, 2, 3])
  })

  it('that fails leaves nothing behind, and other handlers commit', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch((_events, tx) => tx`select 1 / 0`.catch(() => {}))
    expect(await bus.poll({ single: writing(), h })).toMatchObject({ succeeded: 2, retried: 2 })
    expect(await effects()).toEqual([1, 2])
    expect(await bus.attempts()).toMatchObject([
      { n: 1, handler: 'h', message: 'division by zero' },
      { n: 2, handler: 'h', message: 'division by zero' },
    ])
  })

  it('that names events that failed commits what it did for the others, by its own choice', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch(async (events, tx) => {
      await tx`delete from effect where n = 2`
      return { failed: [{ id: events[1]?.id, error: new Error('no 2') }] }
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await effects()).toEqual([1])
    expect(await bus.attempts()).toMatchObject([{ n: 2, message: 'no 2' }])
  })

  it('that names all of them is rolled back', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch((events) => ({ failed: events.map(({ id }) => ({ id, error: 'no' })) }))
    expect(await bus.poll({ h })).toMatchObject({ retried: 2 })
    expect(await effects()).toEqual([])
  })

  it('keeps an error of an event’s own when the whole fails at the commit', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch(async (events, tx) => {
      await tx`insert into child values (99)`
      return { failed: [{ id: events[0]?.id, error: new Error('no 1') }] }
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 0, retried: 2 })
    expect(await bus.attempts()).toMatchObject([
      { n: 1, message: 'no 1' },
      { n: 2, message: expect.stringContaining('child_n_fkey') },
    ])
    expect(await effects()).toEqual([])
  })

  it('that takes too long is cancelled', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch((_events, tx) => tx`select pg_sleep(60)`, { timeoutSeconds: 0.25 })
    expect(await bus.poll({ single: writing(), h })).toMatchObject({ succeeded: 2, retried: 2 })
    expect(await bus.attempts()).toMatchObject([{ error: 'TimeoutError' }, { error: 'TimeoutError' }])
  })
})

describe('what is not started', () => {
  it('is given back uncharged, and what was done commits', async () => {
    const controller = new AbortController()
    await bus.publish('counted', 1, 2, 3)
    const h = writing((n) => {
      if (n === 2) controller.abort()
    })
    expect(await bus.poll({ h }, { signal: controller.signal })).toMatchObject({ succeeded: 2, released: 1 })
    expect(await effects()).toEqual([1, 2])
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1 })
    expect(await effects()).toEqual([1, 2, 3])
    expect(await bus.attempts()).toEqual([])
  })

  it('is behind a plain handler that was not started either', async () => {
    const controller = new AbortController()
    await bus.publish('counted', 1, 2)
    const plain = defineHandler(counted, { concurrency: 1 }, async () => controller.abort())
    expect(await bus.poll({ plain, h: writing() }, { signal: controller.signal })).toMatchObject({
      succeeded: 1,
      released: 1,
    })
    expect(await effects()).toEqual([])
    expect(await bus.deliveries()).toMatchObject([{ n: 1, handler: 'h', reason: 'released', attempt: 0 }])
    await bus.poll({ plain: defineHandler(counted, {}, () => {}), h: writing() })
    expect(await effects()).toEqual([1, 2])
  })
})

describe('the database', () => {
  it('that will not begin a group is no handler’s fault', async () => {
    await bus.publish('counted', 1)
    await sql`alter function loopless.begin_group(uuid, integer) rename to begin_group_gone`
    try {
      await expect(bus.poll({ h: writing() })).rejects.toMatchObject({ name: 'SchemaMissingError' })
      expect(await bus.attempts()).toEqual([])
    } finally {
      await sql`alter function loopless.begin_group_gone(uuid, integer) rename to begin_group`
    }
    expect(await bus.poll({ h: writing() })).toMatchObject({ succeeded: 1 })
  })

  it('is left with no transaction open, whatever happened', async () => {
    await bus.publish('counted', 1, 2, 3)
    await bus.poll({ h: misbehaving((tx) => tx`select 1 / 0`) })
    const [row] = await poller<{ pid: number }[]>`select pg_backend_pid() as pid`
    expect(await sql`select state from pg_stat_activity where pid = ${row?.pid ?? 0}`).toEqual([
      { state: 'idle' },
    ])
  })
})
