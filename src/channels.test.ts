import { channel } from 'node:diagnostics_channel'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { now, testBus } from '../tests/support/bus.ts'
import type { HandledMessage, PolledMessage } from './channels.ts'
import { discard } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler } from './handler.ts'

const bus = await testBus()
const counted = defineEvent<{ n: number }>('counted')

let handled: HandledMessage[] = []
let polled: PolledMessage[] = []
const hearHandled = (message: unknown): void => void handled.push(message as HandledMessage)
const hearPolled = (message: unknown): void => void polled.push(message as PolledMessage)

beforeEach(() => {
  handled = []
  polled = []
  channel('loopless:handled').subscribe(hearHandled)
  channel('loopless:polled').subscribe(hearPolled)
})

afterEach(() => {
  channel('loopless:handled').unsubscribe(hearHandled)
  channel('loopless:polled').unsubscribe(hearPolled)
})

it('announces each outcome of a handler, of every kind', async () => {
  const no = new Error('no')
  const fail = ({ payload }: { payload: { n: number } }): void => {
    if (payload.n === 2) throw no
  }
  await bus.publish('counted', 1, 2)
  await bus.poll({
    plain: defineHandler(counted, {}, fail),
    transactional: defineHandler(counted, { transactional: true }, fail),
    batch: defineHandler(counted, { batch: true }, (events) => ({
      failed: events.filter(({ payload }) => payload.n === 2).map(({ id }) => ({ id, error: no })),
    })),
  })
  const [first, second] = [...new Set(handled.map(({ eventId }) => eventId))]
  const common = {
    eventName: 'counted',
    attempt: 1,
    beganMs: expect.any(Number),
    durationMs: expect.any(Number),
  }
  const byHandler = (one: HandledMessage, other: HandledMessage): number =>
    one.eventId.localeCompare(other.eventId) || one.handler.localeCompare(other.handler)
  expect(handled.toSorted(byHandler)).toEqual(
    ['batch', 'plain', 'transactional']
      .flatMap((handler) => [{ ...common, eventId: first, handler, outcome: 'succeeded', error: undefined }])
      .concat(
        ['batch', 'plain', 'transactional'].flatMap((handler) => [
          { ...common, eventId: second, handler, outcome: 'failed', error: no as never },
        ]),
      ),
  )
  for (const { durationMs } of handled) expect(durationMs).toBeGreaterThanOrEqual(0)
})

it('says of a payload that did not fit that no handler was called', async () => {
  const schema = {
    '~standard': { version: 1, vendor: 'test', validate: () => ({ issues: [{ message: 'no' }] }) },
  } as const
  await bus.publish('strict', 1)
  await bus.poll({ h: defineHandler(defineEvent('strict', schema), {}, () => {}) })
  expect(handled).toMatchObject([{ handler: 'h', outcome: 'failed', beganMs: null }])
})

it('announces a poll that claimed something, once, with its report', async () => {
  await bus.publish('counted', 1, 2, 3)
  const h = defineHandler(counted, { jitter: 0 }, ({ payload }) => {
    if (payload.n === 2) throw discard('no')
  })
  const report = await bus.poll({ h })
  expect(polled).toEqual([{ now, report }])
  expect(report).toMatchObject({ claimed: 3, succeeded: 2, dead: 1 })
})

it('announces what ran alone within the same poll', async () => {
  await bus.publish('counted', 1)
  await bus.sql`
    insert into loopless.delivery (event_xid, event_id, reason, due_at, alone)
    select xid, id, 'recovered', ${now}, true from loopless.event`
  const h = defineHandler(counted, {}, () => {})
  const report = await bus.poll({ h })
  expect(handled).toHaveLength(2)
  expect(polled).toEqual([{ now, report }])
  expect(report).toMatchObject({ claimed: 2, succeeded: 2 })
})

it('says nothing of a poll that found nothing, nor of what was not started', async () => {
  await bus.poll({})
  expect(polled).toEqual([])
  await bus.publish('counted', 1)
  await bus.poll({ h: defineHandler(counted, {}, () => {}) }, { signal: AbortSignal.abort() })
  expect(handled).toEqual([])
  expect(polled).toMatchObject([{ report: { claimed: 1, released: 1 } }])
})

it('says nothing of what was not settled', async () => {
  await bus.publish('counted', 1)
  const h = defineHandler(counted, {}, async () => {
    await bus.sql`update loopless.batch set lease = gen_random_uuid() where lease is not null`
  })
  await expect(bus.poll({ h })).rejects.toMatchObject({ code: 'LEASE_LOST' })
  expect(handled).toEqual([])
  expect(polled).toEqual([])
})
