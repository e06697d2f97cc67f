import { beforeEach, describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { DatabaseError } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler } from './handler.ts'
import { countBacklog, goIdle, markAwake } from './idle.ts'
import { publish } from './publish.ts'
import { redrive } from './redrive.ts'

const bus = await testBus()
const { sql, poller, connect, isAwake } = bus
const happened = defineEvent<{ n: number }>('happened')
const succeed = defineHandler(happened, {}, () => {})
const fail = defineHandler(happened, { maxAttempts: 1 }, () => {
  throw new Error('As told.')
})

/** Wakes that publishers have sent. No extension is here to carry them out: each is recorded as a failure. */
async function wakes(): Promise<number> {
  const [row] = await sql<{ count: number }[]>`select count(*)::int from loopless.wake_failure`
  return row?.count ?? 0
}

/** A session of its own with an open transaction that has published. */
async function publisherInFlight(): Promise<{ commit(): Promise<void>; rollback(): Promise<void> }> {
  const session = await connect({ max: 1 }).reserve()
  await session`begin`
  await publish(session, happened({ n: 1 }))
  const end = async (how: 'commit' | 'rollback'): Promise<void> => {
    await session.unsafe(how)
    session.release()
  }
  return { commit: () => end('commit'), rollback: () => end('rollback') }
}

beforeEach(async () => {
  await sql`delete from loopless.wake_failure`
  await sql`select loopless.set_wake(${now}, 'a-function')`
})

describe('going idle', () => {
  it('says that nobody is awake, once nothing is left', async () => {
    await markAwake(poller, 60_000)
    expect(await isAwake()).toBe(true)
    expect(await goIdle(poller, now, true)).toBe('idle')
    expect(await isAwake()).toBe(false)
  })

  it('waits for a publisher in flight, and finds what it has published', async () => {
    await markAwake(poller, 60_000)
    const publisher = await publisherInFlight()
    expect(await goIdle(poller, now, true)).toBe('awaited')
    expect(await isAwake()).toBe(true)
    await publisher.commit()
    expect(await goIdle(poller, now, true)).toBe('found')
    await bus.poll({ succeed })
    expect(await goIdle(poller, now, true)).toBe('idle')
  })

  it('no longer waits for a publisher that has rolled back', async () => {
    await markAwake(poller, 60_000)
    const publisher = await publisherInFlight()
    await publisher.rollback()
    expect(await goIdle(poller, now, true)).toBe('idle')
  })

  it('happens in any case when patience has ended', async () => {
    await markAwake(poller, 60_000)
    const publisher = await publisherInFlight()
    expect(await goIdle(poller, now, false)).toBe('idle')
    expect(await isAwake()).toBe(false)
    await publisher.commit()
  })

  it('finds what is due: a delivery, a batch that was given back, a lease that has run out', async () => {
    await bus.publish('happened', 1)
    await sql`select loopless.claim(${now}, gen_random_uuid(), ${later(10)}, 500, 1000000, 10, null)`
    expect(await goIdle(poller, later(9), true)).toBe('idle')
    expect(await goIdle(poller, later(10), true)).toBe('found')
    await bus.poll({ succeed }, { at: later(10) })

    await sql`select loopless.claim(${now}, gen_random_uuid(), ${later(99)}, 500, 1000000, 10, null)`
    await bus.publish('happened', 2)
    const [held] = await sql<{ token: string }[]>`select gen_random_uuid() as token`
    await sql`select loopless.claim(${now}, ${held?.token ?? ''}, ${later(99)}, 500, 1000000, 10, null)`
    expect(await goIdle(poller, later(20), true)).toBe('idle')
    await sql`select loopless.release(${later(20)}, ${held?.token ?? ''})`
    expect(await goIdle(poller, later(20), true)).toBe('found')
    await bus.poll({ succeed }, { at: later(20) })

    await publish(sql, happened({ n: 3 }), { dueAt: later(30) })
    await bus.poll({ succeed }, { at: later(20) })
    expect(await goIdle(poller, later(29), true)).toBe('idle')
    expect(await goIdle(poller, later(30), true)).toBe('found')
  })

  it('is refused above read committed, where the last look would miss what has committed since', async () => {
    await sql
      .begin('isolation level repeatable read', async (tx) => {
        await expect(tx`select loopless.go_idle(${now})`).rejects.toMatchObject({ code: 'LL012' })
        throw new Error('enough')
      })
      .catch(() => {})
    const session = connect({ max: 1, connection: { default_transaction_isolation: 'repeatable read' } })
    await expect(goIdle(session as never, now, true)).rejects.toBeInstanceOf(DatabaseError)
  })
})

describe('publishing', () => {
  it('invokes nobody while no function is set', async () => {
    await sql`select loopless.unset_wake()`
    await bus.publish('happened', 1)
    expect(await wakes()).toBe(0)
  })

  it('invokes once a transaction when nobody is awake, and those right behind it do not', async () => {
    await goIdle(poller, now, true)
    const publisher = await publisherInFlight()
    expect(await isAwake()).toBe(true)
    await bus.publish('happened', 2)
    await bus.publish('happened', 3)
    expect(await wakes()).toBe(0) // the first has not committed its record
    await publisher.commit()
    expect(await wakes()).toBe(1)
    await markAwake(sql, 0)
    await sql.begin(async (tx) => {
      await publish(tx, happened({ n: 4 }))
      await markAwake(sql, 0)
      await publish(tx, happened({ n: 5 }))
    })
    expect(await wakes()).toBe(2)
  })

  it('invokes nobody while a poller is awake', async () => {
    await markAwake(sql, 60_000)
    await bus.publish('happened', 1)
    expect(await wakes()).toBe(0)
  })

  it('invokes again once the mark is stale: whoever was on the way did not arrive', async () => {
    await bus.publish('happened', 1)
    await sql`select setval('loopless.wake_mark', (date_part('epoch', clock_timestamp()) * 1000)::bigint - 1)`
    await bus.publish('happened', 2)
    expect(await wakes()).toBe(2)
  })

  it.each(['repeatable read', 'serializable'])(
    'sees at %s that a poller has gone idle since',
    async (level) => {
      await markAwake(sql, 60_000)
      await sql.begin(`isolation level ${level}`, async (tx) => {
        await tx`select count(*) from loopless.event` // the snapshot from here on
        expect(await goIdle(poller, now, true)).toBe('idle')
        await publish(tx, happened({ n: 1 }))
      })
      expect(await wakes()).toBe(1)
    },
  )

  it('keeps a poller from going idle at any isolation level', async () => {
    await markAwake(sql, 60_000)
    await sql.begin('isolation level serializable', async (tx) => {
      await publish(tx, happened({ n: 1 }))
      expect(await goIdle(poller, now, true)).toBe('awaited')
    })
    expect(await goIdle(poller, now, true)).toBe('found')
  })

  it('never fails because waking failed, and the failure is recorded', async () => {
    await sql.begin(async (tx) => {
      await publish(tx, happened({ n: 1 }))
      await publish(tx, happened({ n: 2 }))
    })
    const [failure] = await sql<{ code: string; message: string }[]>`
      select error_code as code, error_message as message from loopless.wake_failure`
    expect(failure?.message).toContain('aws_commons')
    expect(await bus.poll({ succeed })).toMatchObject({ succeeded: 2 })
  })

  it('wakes from a function, from COPY, and from a transaction that is prepared and committed later', async () => {
    await sql.unsafe(`do $$ begin perform loopless.publish('happened', '{"n":1}'); end $$`)
    expect(await wakes()).toBe(1)
    await markAwake(sql, 0)
    const writable = await sql`copy loopless.event (name, payload) from stdin`.writable()
    await new Promise<void>((resolve, reject) => {
      writable.once('error', reject).once('finish', resolve).end('happened\t{"n":2}\n')
    })
    expect(await wakes()).toBe(2)
    await markAwake(sql, 60_000)
    const session = await connect({ max: 1 }).reserve()
    await session`begin`
    await publish(session, happened({ n: 3 }))
    await session`prepare transaction 'prepared publisher'`
    session.release()
    expect(await goIdle(poller, now, true)).toBe('awaited')
    await sql`commit prepared 'prepared publisher'`
    expect(await goIdle(poller, now, true)).toBe('found')
    await bus.poll({ succeed })
    expect(await goIdle(poller, now, true)).toBe('idle')
  })

  it('does not wake where triggers are off, as for the rows that logical replication applies', async () => {
    await sql.begin(async (tx) => {
      await tx`set local session_replication_role = replica`
      await tx`insert into loopless.event (name, payload) values ('happened', '{"n":1}')`
    })
    expect(await wakes()).toBe(0)
    expect(await bus.poll({ succeed })).toMatchObject({ succeeded: 1 })
  })
})

describe('a receiver of wakes that are sent at the commit', () => {
  it('is to invoke for the first of a burst only', async () => {
    await markAwake(sql, 0)
    const answers = await sql<{ invoke: boolean }[]>`
      select loopless.begin_waking() as invoke from generate_series(1, 3)`
    expect(answers.map(({ invoke }) => invoke)).toEqual([true, false, false])
  })
})

describe('a redrive', () => {
  it('wakes, and keeps a poller from going idle until it has committed', async () => {
    await bus.publish('happened', 1)
    await bus.poll({ fail })
    await sql`delete from loopless.wake_failure`
    await markAwake(sql, 0)
    await sql.begin(async (tx) => {
      expect(await redrive(tx as never, now)).toBe(1)
      expect(await goIdle(poller, now, true)).toBe('awaited')
    })
    expect(await wakes()).toBe(1)
    expect(await goIdle(poller, now, true)).toBe('found')
  })
})

describe('the backlog', () => {
  it('counts what waits in the log, up to a limit', async () => {
    expect(await countBacklog(poller, 10)).toBe(0)
    await bus.publish('happened', 1, 2, 3)
    expect(await countBacklog(poller, 10)).toBe(3)
    expect(await countBacklog(poller, 2)).toBe(2)
    await bus.poll({ succeed }, { limits: { events: 1 } })
    expect(await countBacklog(poller, 10)).toBe(2)
  })
})
