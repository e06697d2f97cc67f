import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { installAwsLambda } from '../infra/local/aws-lambda.ts'
import type { Sql } from '../src/index.ts'
import { canInvokeAtOnce } from './support/at-once.ts'
import { testDatabase } from './support/database.ts'
import { type Lambda, startLambda } from './support/lambda.ts'
import { withSession } from './support/session.ts'

const database = await testDatabase()
const { sql } = database
const arn = 'arn:aws:lambda:eu-central-1:123456789012:function:shop-wake'
const wake = '{"loopless":"wake"}'
/** No machine is so slow that a wake runs into it. */
const patientMs = 50_000

let lambda: Lambda
/** Sessions that know where Lambda is. */
let publisher: Sql
beforeAll(async () => {
  lambda = await startLambda()
  await sql.unsafe(
    `alter database ${nameOf(database.url)} set aws_lambda.endpoint_override = '${lambda.url}'`,
  )
  publisher = database.connect({ max: 3 })
})
afterAll(() => lambda.close())

beforeEach(async () => {
  lambda.answer(() => ({ status: 202 }))
  await sql`truncate loopless.event, loopless.wake_failure, loopless.delivery, loopless.dead_letter`
  await sql`select loopless.rebase(now())`
  await sql`select loopless.set_wake(now(), ${arn}, timeout_ms => ${patientMs}::int)`
})

function nameOf(url: string): string {
  return new URL(url).pathname.slice(1)
}

const publish = (on: Pick<Sql, 'unsafe'> = publisher): Promise<unknown> =>
  on.unsafe(`select loopless.publish('order.placed', '{}')`)

/** The payloads of the wakes that were sent while `run` went on. */
type WakesOf = (run: () => Promise<unknown>) => Promise<string[]>

const notified: WakesOf = async (run) => {
  const listener = database.connect({ max: 1 })
  const sent: string[] = []
  const ended = Promise.withResolvers<void>()
  await listener.listen('aws_lambda', (text) =>
    text === 'end' ? ended.resolve() : sent.push(JSON.parse(text).payload),
  )
  await run()
  await sql`select pg_notify('aws_lambda', 'end')`
  await ended.promise
  await listener.end()
  return sent
}

const invoked: WakesOf = async (run) => {
  lambda.invocations.length = 0
  await run()
  return lambda.invocations.map(({ payload }) => payload)
}

const failures = (): Promise<{ code: string; message: string }[]> =>
  sql`select error_code as code, error_message as message from loopless.wake_failure order by id`

const events = async (): Promise<number> => (await sql`select from loopless.event`).length

const variants: [variant: 'at the commit' | 'at once', wakesOf: WakesOf][] = [['at the commit', notified]]
if (await canInvokeAtOnce(sql)) variants.push(['at once', invoked])

describe.each(variants)('a publish, with aws_lambda %s', (variant, wakesOf) => {
  beforeEach(() => installAwsLambda(sql, variant))

  it('wakes a poller', async () => {
    expect(await wakesOf(() => publish())).toEqual([wake])
    expect(await failures()).toEqual([])
  })

  it('does so once a transaction, however many statements publish', async () => {
    const run = () =>
      publisher.begin(async (tx) => {
        for (const _ of [1, 2, 3]) await publish(tx)
        await tx.savepoint((savepoint) => publish(savepoint))
      })
    expect(await wakesOf(run)).toEqual([wake])
  })

  it('wakes nobody while a poller is awake, or when none is set', async () => {
    await sql`select loopless.mark_awake(3600000)`
    expect(await wakesOf(() => publish())).toEqual([])
    await sql`select loopless.mark_awake(0)`
    await sql`select loopless.unset_wake()`
    expect(await wakesOf(() => publish())).toEqual([])
    expect(await failures()).toEqual([])
    expect(await events()).toBe(2)
  })

  it.each(['read committed', 'repeatable read', 'serializable'])('wakes a poller at %s', async (level) => {
    const run = () =>
      publisher.begin(`isolation level ${level}`, async (tx) => {
        await tx`select from loopless.event`
        await publish(tx)
      })
    expect(await wakesOf(run)).toEqual([wake])
    expect(await events()).toBe(1)
  })

  it('sees that a poller was woken since, also above read committed', async () => {
    const run = () =>
      publisher.begin('isolation level serializable', async (tx) => {
        await tx`select from loopless.event` // its snapshot is from before
        await sql`select loopless.mark_awake(3600000)`
        await publish(tx)
      })
    expect(await wakesOf(run)).toEqual([])
  })

  it('wakes a poller from a function, also one that catches errors', async () => {
    await sql.unsafe(`
      create or replace function place_order() returns void language plpgsql as $$
      begin
        begin
          perform loopless.publish('order.placed', '{}');
          raise exception 'taken back';
        exception when others then
          perform loopless.publish('order.refused', '{}');
        end;
      end $$`)
    expect(new Set(await wakesOf(() => publisher`select place_order()`))).toEqual(new Set([wake]))
    expect(await sql`select name from loopless.event`).toEqual([{ name: 'order.refused' }])
  })

  it('wakes a poller by COPY', async () => {
    const rows = ['order.placed\t{}\n', 'order.shipped\t{}\n']
    const run = async () =>
      pipeline(
        Readable.from(rows),
        await publisher`copy loopless.event (name, payload) from stdin`.writable(),
      )
    expect(await wakesOf(run)).toEqual([wake])
    expect(await events()).toBe(2)
  })

  it('wakes nobody where replication applies it: triggers do not fire there, the next poll finds it', async () => {
    const run = () =>
      publisher.begin(async (tx) => {
        await tx`set local session_replication_role = replica` // as the worker of a subscription
        await publish(tx)
      })
    expect(await wakesOf(run)).toEqual([])
    expect(await sql`select loopless.backlog(10) as backlog`).toEqual([{ backlog: 1 }])
  })

  it('wakes a poller by a redrive', async () => {
    await sql`
      with one as (
        insert into loopless.event (name, payload) values ('order.placed', '{}') returning xid, id
      )
      insert into loopless.dead_letter (event_xid, event_id, handler, reason, attempts, error_class, error_message, died_at)
      select xid, id, 'mail', 'discarded', 1, 'Error', '', now() from one`
    await sql`select loopless.mark_awake(0)`
    expect(await wakesOf(() => publisher`select loopless.redrive(now())`)).toEqual([wake])
    await sql`select loopless.mark_awake(0)`
    expect(await wakesOf(() => publisher`select loopless.redrive(now())`)).toEqual([])
  })

  it('asks no right of a publisher but to publish', async () => {
    const role = `shop_${process.pid}`
    await sql.unsafe(`
      create role ${role};
      grant usage on schema loopless to ${role};
      grant execute on function loopless.publish to ${role};`)
    try {
      const run = () =>
        publisher.begin(async (tx) => {
          await tx.unsafe(`set local role ${role}`)
          await publish(tx)
        })
      expect(await wakesOf(run)).toEqual([wake])
      expect(await failures()).toEqual([])
    } finally {
      await sql.unsafe(`drop owned by ${role}; drop role ${role}`)
    }
  })
})

describe('a publish in a prepared transaction', () => {
  const id = `wake_${process.pid}`
  const prepare = async (): Promise<void> => {
    await withSession(database.url, async (session) => {
      await session.unsafe('begin')
      await publish(session)
      await session.unsafe(`prepare transaction '${id}'`)
    })
  }

  it('is refused by Postgres with aws_lambda at the commit: it has notified', async () => {
    await installAwsLambda(sql, 'at the commit')
    await expect(prepare()).rejects.toMatchObject({
      code: '0A000',
      message: expect.stringContaining(
        'cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY',
      ),
    })
    expect(await events()).toBe(0)
  })

  it('passes without a wake when a poller is awake', async () => {
    await installAwsLambda(sql, 'at the commit')
    await sql`select loopless.mark_awake(3600000)`
    await prepare()
    await sql.unsafe(`commit prepared '${id}'`)
    expect(await events()).toBe(1)
  })

  it.runIf(variants.length > 1)('wakes a poller at once, which waits for it', async () => {
    await installAwsLambda(sql, 'at once')
    expect(await invoked(prepare)).toEqual([wake])
    const goIdle = async () => (await sql`select loopless.go_idle(now()) as state`)[0]?.['state']
    expect(await goIdle()).toBe('awaited')
    await sql.unsafe(`commit prepared '${id}'`)
    expect(await goIdle()).toBe('found')
  })
})

describe('a publish whose wake fails', () => {
  it('goes on where the extension is missing, and is recorded', async () => {
    await sql`drop schema if exists aws_lambda, aws_commons cascade`
    await publish()
    expect(await events()).toBe(1)
    expect(await failures()).toEqual([{ code: '3F000', message: 'schema "aws_commons" does not exist' }])
  })

  it('goes on where the owner of the schema may not use the extension', async () => {
    await installAwsLambda(sql, 'at the commit')
    const role = `owner_${process.pid}`
    await sql.unsafe(`
      create role ${role} login;
      alter function loopless.wake_on_publish() owner to ${role};
      grant usage on schema loopless to ${role};
      grant all on all tables in schema loopless to ${role};
      grant all on all sequences in schema loopless to ${role};
      grant execute on all functions in schema loopless to ${role};`)
    try {
      await publish()
      expect(await events()).toBe(1)
      expect(await failures()).toEqual([
        { code: '42501', message: 'permission denied for schema aws_lambda' },
      ])
    } finally {
      await sql.unsafe(`reassign owned by ${role} to current_user; drop owned by ${role}; drop role ${role}`)
    }
  })

  describe.runIf(variants.length > 1)('in Lambda', () => {
    beforeEach(() => installAwsLambda(sql, 'at once'))

    it('goes on when Lambda refuses; publishers of the next 5 s do not ask again', async () => {
      lambda.answer(() => ({
        status: 403,
        body: '{"Message":"not authorized to perform: lambda:InvokeFunction"}',
      }))
      const [began] = await sql`select extract(epoch from clock_timestamp())::float8 * 1000 as ms`
      expect(await invoked(() => publish())).toHaveLength(1)
      expect(await events()).toBe(1)
      expect(await failures()).toEqual([
        {
          code: '39000',
          message: expect.stringMatching(
            /^invoke API failed.*not authorized to perform: lambda:InvokeFunction/,
          ),
        },
      ])
      const [mark] = await sql`select last_value::float8 as ms from loopless.wake_mark`
      expect(mark?.['ms']).toBeGreaterThanOrEqual(Math.floor(began?.['ms']) + 5000)
      await sql`select loopless.mark_awake(0)` // after those 5 s
      expect(await invoked(() => publish())).toHaveLength(1)
    })

    it('goes on when Lambda does not answer: the request is cut off', async () => {
      lambda.answer(() => 'hang')
      await sql`select loopless.set_wake(now(), ${arn}, timeout_ms => 50)`
      await publish()
      expect(await events()).toBe(1)
      expect(await failures()).toEqual([
        { code: '39000', message: expect.stringMatching(/timed out|timeout/i) },
      ])
    })

    it('goes on when nothing is there', async () => {
      const lost = database.connect({
        max: 1,
        connection: { 'aws_lambda.endpoint_override': 'http://127.0.0.1:1' },
      })
      await publish(lost)
      expect(await failures()).toEqual([
        { code: '39000', message: expect.stringContaining('Unable to connect to endpoint') },
      ])
    })

    it('leaves the time-outs of the publisher as they were', async () => {
      await publisher.begin(async (tx) => {
        await tx`set local aws_lambda.connect_timeout_ms = 1234`
        await tx`set local aws_lambda.request_timeout_ms = 5678`
        await publish(tx)
        expect(
          await tx`
          select current_setting('aws_lambda.connect_timeout_ms') as connect, current_setting('aws_lambda.request_timeout_ms') as request`,
        ).toEqual([{ connect: '1234', request: '5678' }])
      })
    })
  })
})
