import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { later, now, testBus } from '../tests/support/bus.ts'
import { claim, release, type Work } from './claim.ts'
import { defineEvent } from './event.ts'
import { defineHandler } from './handler.ts'
import { defineHandlers } from './handler-set.ts'
import type { ClaimLimits } from './lease.ts'
import type { FailedOutcome, Outcomes } from './outcome.ts'
import { poll } from './poll.ts'
import { publish } from './publish.ts'
import { settle, settleStatement } from './settle.ts'

const bus = await testBus()
const { sql, poller } = bus

const counted = defineEvent<{ n: number }>('counted')
const limits: ClaimLimits = {
  now,
  until: later(75),
  events: 500,
  bytes: 1_000_000,
  deliveries: 100,
  handlerSet: defineHandlers({}).hash,
}
const success: Outcomes = { failed: [], waiting: [], released: [], done: [] }

/** What settles deliveries that were claimed and succeeded. */
function doneWith(work: Work): Outcomes {
  return { ...success, done: work.items.flatMap(({ delivery }) => delivery?.id ?? []) }
}

describe('a lease that was lost', () => {
  it('while handlers ran fails the poll, and nothing of it is settled', async () => {
    const numbers: string[] = []
    await bus.publish('counted', 1, 2)
    const handler = defineHandler(
      counted,
      { concurrency: 1, jitter: 0 },
      async ({ payload }, { now: at }) => {
        numbers.push(`${payload.n} ${at.toISOString().slice(14, 19)}`)
        const isFirst = at.getTime() === now.getTime()
        if (isFirst && payload.n === 2) await poll(later(76), { sql, handlers: defineHandlers({ handler }) })
        if (isFirst) throw new Error('would be recorded')
      },
    )
    await expect(bus.poll({ handler })).rejects.toMatchObject({ name: 'LeaseLostError', code: 'LEASE_LOST' })
    expect(numbers).toEqual(['1 00:00', '2 00:00', '1 01:16', '2 01:16'])
    expect(await bus.attempts()).toEqual([])
    expect(await bus.deliveries()).toEqual([])
    expect(await bus.poll({ handler }, { at: later(999) })).toMatchObject({ claimed: 0 })
  })

  it('on deliveries fails the poll too', async () => {
    await publish(sql, counted({ n: 1 }), { dueAt: now })
    const handler = defineHandler(counted, {}, async (_event, { now: at }) => {
      if (at.getTime() !== now.getTime()) throw new Error('the second')
      await poll(later(76), { sql, handlers: defineHandlers({ handler }) })
    })
    await expect(bus.poll({ handler })).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(await bus.deliveries()).toMatchObject([{ attempt: 1, reason: 'retry' }])
  })

  it('is not lost by its end alone: as long as nobody took the events, they can be settled', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    await settle(poller, { work, outcomes: success, now: later(9_999) })
    expect(await bus.openBatches()).toEqual([])
  })
})

describe('a claim', () => {
  it('is settled once, be it new events or deliveries', async () => {
    await bus.publish('counted', 1)
    await publish(sql, counted({ n: 2 }), { dueAt: now })
    const work = await claim(poller, limits)
    const settlement = { work, outcomes: doneWith(work), now }
    await settle(poller, settlement)
    await expect(settle(poller, settlement)).rejects.toMatchObject({ code: 'LEASE_LOST' })

    await publish(sql, counted({ n: 3 }), { dueAt: now })
    const second = await claim(poller, limits)
    expect(second.batchId).toBeNull()
    await settle(poller, { work: second, outcomes: doneWith(second), now })
    await expect(settle(poller, { work: second, outcomes: doneWith(second), now })).rejects.toMatchObject({
      code: 'LEASE_LOST',
      message: expect.stringContaining('1 of 1 deliveries'),
    })
  })

  it('is settled by nobody else, who knows its id but not its lease', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    const forged = { ...work, token: randomUUID() }
    await expect(settle(poller, { work: forged, outcomes: success, now })).rejects.toMatchObject({
      code: 'LEASE_LOST',
    })
    expect(await bus.openBatches()).toMatchObject([{ leased: true }])
  })

  it('is settled as a whole or not at all', async () => {
    await bus.publish('counted', 1)
    await publish(sql, counted({ n: 2 }), { dueAt: now })
    const work = await claim(poller, limits)
    const outcomes = { ...doneWith(work), done: [...doneWith(work).done, '987654321'] }
    await expect(settle(poller, { work, outcomes, now })).rejects.toMatchObject({ code: 'LEASE_LOST' })
    expect(await bus.openBatches()).toMatchObject([{ leased: true }])
    expect(await bus.deliveries()).toMatchObject([{ n: 2, leased: true }])
  })

  it('that was given back is not settled any more', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    await release(poller, work.token, now)
    await expect(settle(poller, { work, outcomes: success, now })).rejects.toMatchObject({
      code: 'LEASE_LOST',
    })
    expect(await claim(poller, limits)).toMatchObject({ items: [{ event: { name: 'counted' } }] })
  })

  it('that was settled is not given back any more', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    await settle(poller, { work, outcomes: success, now })
    await release(poller, work.token, now)
    expect(await claim(poller, limits)).toMatchObject({ items: [] })
  })

  it('in a group is settled in that group’s transaction only', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    const settlement = { work, outcomes: success, now }
    await expect(settleStatement(poller, settlement, true)).rejects.toMatchObject({ code: 'LL013' })
    const inAnother = poller.begin(async (tx) => {
      await tx`select loopless.begin_group(${randomUUID()}, 1000)`
      await tx`select loopless.settle(${now}, ${work.token}, ${work.batchId}, null, true)`
    })
    await expect(inAnother).rejects.toMatchObject({ code: 'LL013' })
    await poller.begin(async (tx) => {
      await tx`select loopless.begin_group(${work.token}, 1000)`
      await tx`select loopless.settle(${now}, ${work.token}, ${work.batchId}, null, true)`
    })
    expect(await bus.openBatches()).toEqual([])
  })
})

describe('a failure that is settled', () => {
  /** A failure of a handler for the first event of a claim. */
  function failureOf({ items: [item] }: Work, handler: string): FailedOutcome {
    return {
      xid: item?.xid ?? '',
      id: item?.event.id ?? '',
      handler,
      attempt: 1,
      charged: true,
      alone: false,
      dueAt: later(1),
      beganAt: now,
      endedAt: now,
      errorClass: 'Error',
      errorMessage: 'no',
      errorStack: null,
    }
  }

  it('makes no second row for a handler that the event waits for already', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    await sql`
      insert into loopless.delivery (event_xid, event_id, handler, reason, due_at)
      select xid, id, 'h', 'rebased', ${later(5)} from loopless.event`
    await settle(poller, { work, outcomes: { ...success, failed: [failureOf(work, 'h')] }, now })
    expect(await bus.deliveries()).toMatchObject([{ handler: 'h', reason: 'rebased', dueAt: later(5) }])
    expect(await bus.attempts()).toHaveLength(1)
  })

  it('replaces a dead letter of the same handler', async () => {
    await bus.publish('counted', 1)
    const work = await claim(poller, limits)
    await sql`
      insert into loopless.dead_letter (event_xid, event_id, handler, reason, attempts, error_class, error_message, died_at)
      select xid, id, 'h', 'discarded', 1, 'Error', 'old', ${now} from loopless.event`
    const { dueAt: _, ...failure } = failureOf(work, 'h')
    await settle(poller, { work, outcomes: { ...success, failed: [{ ...failure, dead: 'exhausted' }] }, now })
    expect(await bus.deadLetters()).toMatchObject([{ reason: 'exhausted', message: 'no' }])
  })
})

describe('a connection that is lost', () => {
  it('while plain handlers run costs nothing: another settles', async () => {
    await bus.publish('counted', 1, 2)
    const [row] = await poller<{ pid: number }[]>`select pg_backend_pid() as pid`
    const handler = defineHandler(counted, {}, async ({ payload }) => {
      if (payload.n === 1) await sql`select pg_terminate_backend(${row?.pid ?? 0})`
      else throw new Error('recorded')
    })
    expect(await bus.poll({ handler })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await bus.attempts()).toMatchObject([{ n: 2, message: 'recorded' }])
    expect(await bus.openBatches()).toEqual([])
  })
})
