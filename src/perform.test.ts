import { setImmediate as turn } from 'node:timers/promises'
import type { StandardSchemaV1 } from '@standard-schema/spec'
import { describe, expect, it, vi } from 'vitest'
import * as z from 'zod'
import { later, now, testBus } from '../tests/support/bus.ts'
import { defineEvent } from './event.ts'
import {
  type BatchEvent,
  defineHandler,
  type Handler,
  type HandlerContext,
  type HandlerOptions,
} from './handler.ts'
import { publish } from './publish.ts'

type SingleOptions = Omit<HandlerOptions, 'batch'>

const bus = await testBus()
const { sql } = bus

const counted = defineEvent<{ n: number }>('counted')
type Counted = BatchEvent<{ n: number }>

/** A Standard Schema that takes its time. */
function schemaOf<Output>(
  validate: (value: unknown) => Promise<{ value: Output }>,
): StandardSchemaV1<unknown, Output> {
  return { '~standard': { version: 1, vendor: 'test', validate } }
}

describe('what a handler gets', () => {
  it('is the event, as it was published', async () => {
    const events: unknown[] = []
    const id = await publish(sql, counted({ n: 1 }), { headers: { trace: 'abc' } })
    await sql`select loopless.publish('counted', '["any", {"JSON": null}, "\\u0000", 1.50]')`
    await bus.poll({ h: defineHandler(counted, {}, (event) => void events.push(event)) })
    expect(events).toEqual([
      { id, name: 'counted', payload: { n: 1 }, headers: { trace: 'abc' }, publishedAt: expect.any(Date) },
      expect.objectContaining({ payload: ['any', { JSON: null }, '\u0000', 1.5], headers: {} }),
    ])
    expect(
      await sql`select id, published_at as "publishedAt" from loopless.event order by id limit 1`,
    ).toMatchObject([{ id, publishedAt: (events[0] as { publishedAt: Date }).publishedAt }])
  })

  it('tells of the attempt, the poll’s clock, the headers, and a key that is the same at every attempt', async () => {
    const contexts: Partial<HandlerContext>[] = []
    const id = await publish(sql, counted({ n: 1 }), { headers: { trace: 'abc' } })
    const h = defineHandler(
      counted,
      { jitter: 0 },
      (_event, { attempt, now, headers, idempotencyKey, signal }) => {
        contexts.push({ attempt, now, headers, idempotencyKey, signal })
        throw new Error('again')
      },
    )
    await bus.poll({ 'send-mail': h })
    await bus.poll({ 'send-mail': h }, { at: later(15) })
    const common = {
      headers: { trace: 'abc' },
      idempotencyKey: `${id}:send-mail`,
      signal: expect.any(AbortSignal),
    }
    expect(contexts).toEqual([
      { attempt: 1, now, ...common },
      { attempt: 2, now: later(15), ...common },
    ])
  })

  it('includes a log whose lines say who speaks', async () => {
    const lines: unknown[] = []
    await bus.publish('counted', 1)
    const h = defineHandler(counted, {}, (_event, { log }) => {
      log.info('sent', { to: 'x@example.org' })
      log.warn('slow')
      log.error('failed', { attempt: 'mine' })
    })
    await bus.poll({ h }, { log: (level, message, fields) => void lines.push([level, message, fields]) })
    const who = { handler: 'h', event: 'counted', eventId: expect.stringMatching(/^\d+$/), attempt: 1 }
    expect(lines).toEqual([
      ['info', 'sent', { ...who, to: 'x@example.org' }],
      ['warn', 'slow', who],
      ['error', 'failed', { ...who, attempt: 'mine' }],
    ])
  })

  it('logs lines of JSON on the console unless told otherwise', async () => {
    const info = vi.spyOn(console, 'info').mockImplementation(() => {})
    await bus.publish('counted', 1)
    await bus.poll({
      h: defineHandler(counted, { batch: true }, (_events, { log }) => log.info('done', { count: 1 })),
    })
    const lines = info.mock.calls.map(([line]) => JSON.parse(String(line)))
    info.mockRestore()
    expect(lines).toEqual([{ level: 'info', message: 'done', handler: 'h', count: 1 }])
  })
})

describe('a schema', () => {
  it('makes of the payload what the handler gets', async () => {
    const dated = defineEvent(
      'dated',
      z.object({ at: z.string().transform((text) => new Date(text)), n: z.number().default(7) }),
    )
    const payloads: unknown[] = []
    await publish(sql, dated({ at: '2030-01-01T00:00:00Z' }))
    await bus.poll({ h: defineHandler(dated, {}, ({ payload }) => void payloads.push(payload)) })
    expect(payloads).toEqual([{ at: now, n: 7 }])
    expect(await sql`select payload from loopless.event`).toEqual([
      { payload: { at: '2030-01-01T00:00:00Z' } },
    ])
  })

  it('may answer later', async () => {
    const slow = defineEvent(
      'counted',
      schemaOf(async () => turn({ value: 'checked' })),
    )
    const payloads: unknown[] = []
    await bus.publish('counted', 1, 2)
    await bus.poll({
      single: defineHandler(slow, {}, ({ payload }) => void payloads.push(payload)),
      batch: defineHandler(
        slow,
        { batch: true },
        (events) => void payloads.push(events.map(({ payload }) => payload)),
      ),
    })
    expect(payloads).toEqual(['checked', 'checked', ['checked', 'checked']])
  })

  it('that never answers is a handler that takes too long; it is not called any more', async () => {
    const { promise, resolve } = Promise.withResolvers<{ value: unknown }>()
    const stuck = defineEvent(
      'counted',
      schemaOf(() => promise),
    )
    const calls: string[] = []
    await bus.publish('counted', 1)
    const report = await bus.poll({
      single: defineHandler(stuck, { timeoutSeconds: 0.02 }, () => void calls.push('single')),
      batch: defineHandler(stuck, { timeoutSeconds: 0.02, batch: true }, () => void calls.push('batch')),
    })
    expect(report).toMatchObject({ succeeded: 0, retried: 2, dead: 0 })
    resolve({ value: 1 })
    await turn()
    expect(calls).toEqual([])
    expect(await bus.attempts()).toMatchObject([{ error: 'TimeoutError' }, { error: 'TimeoutError' }])
  })

  it('that throws is a handler that throws: it may be mended by the next attempt', async () => {
    const broken = defineEvent(
      'counted',
      schemaOf(() => Promise.reject(new Error('no connection'))),
    )
    await bus.publish('counted', 1)
    expect(await bus.poll({ h: defineHandler(broken, {}, () => {}) })).toMatchObject({ retried: 1, dead: 0 })
    expect(await bus.attempts()).toMatchObject([{ message: 'no connection' }])
  })
})

describe('a batch handler', () => {
  /** A batch handler that does something with the numbers of its events. */
  function batch(
    act: (numbers: number[], events: ReadonlyArray<Counted>) => unknown,
    options: SingleOptions = {},
  ): Handler {
    return defineHandler(
      counted,
      { jitter: 0, ...options, batch: true },
      (events) =>
        act(
          events.map(({ payload }) => payload.n),
          events,
        ) as undefined,
    )
  }

  it('gets all events of a poll in order, in one call', async () => {
    const calls: number[][] = []
    await bus.publish('counted', 1, 2)
    await bus.publish('other', 9)
    await bus.publish('counted', 3)
    await publish(sql, counted({ n: 4 }), { dueAt: now })
    expect(await bus.poll({ h: batch((numbers) => void calls.push(numbers)) })).toMatchObject({
      claimed: 5,
      succeeded: 4,
    })
    expect(calls).toEqual([[1, 2, 3, 4]])
  })

  it('gets each event with its own attempt and key', async () => {
    const seen: unknown[] = []
    await bus.publish('counted', 1)
    const h = batch((_numbers, events) => {
      seen.push(
        events.map(({ attempt, idempotencyKey, id }) => ({ attempt, isKey: idempotencyKey === `${id}:h` })),
      )
      return { failed: events.slice(0, 1).map(({ id }) => ({ id, error: new Error('no') })) }
    })
    await bus.poll({ h })
    await bus.publish('counted', 2)
    await bus.poll({ h }, { at: later(15) })
    expect(seen).toEqual([
      [{ attempt: 1, isKey: true }],
      [
        { attempt: 1, isKey: true },
        { attempt: 2, isKey: true },
      ],
    ])
  })

  it('has failed with all when what it returns throws when it is looked at', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch(() => ({
      get failed(): never {
        throw new Error('no')
      },
    }))
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 0, retried: 2 })
    expect(await bus.attempts()).toMatchObject([{ message: 'no' }, { message: 'no' }])
  })

  it('may name events that failed: those are tried again, the others are done', async () => {
    const calls: number[][] = []
    await bus.publish('counted', 1, 2, 3)
    const h = batch((numbers, events) => {
      calls.push(numbers)
      const odd = events.filter(({ payload }) => payload.n % 2 === 1)
      return calls.length === 1
        ? { failed: odd.map(({ id, payload }) => ({ id, error: new Error(`no ${payload.n}`) })) }
        : { failed: [] }
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 2 })
    expect(await bus.attempts()).toMatchObject([
      { n: 1, message: 'no 1' },
      { n: 3, message: 'no 3' },
    ])
    expect(await bus.poll({ h }, { at: later(15) })).toMatchObject({ succeeded: 2 })
    expect(calls).toEqual([
      [1, 2, 3],
      [1, 3],
    ])
  })

  it('may name them by numbers, or more than once', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch((_numbers, events) => ({
      failed: [events[0], events[0]].map((event) => ({ id: Number(event?.id), error: 'no' })),
    }))
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 1, retried: 1 })
    expect(await bus.deliveries()).toMatchObject([{ n: 1 }])
  })

  it('that throws has failed with all of them', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch(() => {
      throw new Error('all')
    })
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 0, retried: 2 })
    expect(await bus.attempts()).toMatchObject([
      { n: 1, message: 'all' },
      { n: 2, message: 'all' },
    ])
  })

  it('that never ends is given up with all of them', async () => {
    await bus.publish('counted', 1, 2)
    const h = batch(() => new Promise(() => {}), { timeoutSeconds: 0.02 })
    expect(await bus.poll({ h })).toMatchObject({ retried: 2 })
    expect(await bus.attempts()).toMatchObject([{ error: 'TimeoutError' }, { error: 'TimeoutError' }])
  })

  it.each<[string, unknown, string]>([
    ['null', null, 'got null.'],
    ['true', true, 'got boolean.'],
    ['an array', [], 'got object.'],
    ['an object of another kind', { failures: [] }, 'got object.'],
    ['failed that is no array', { failed: '1' }, 'got object.'],
    ['an event that it did not get', { failed: [{ id: '987654321', error: 'no' }] }, 'got 987654321.'],
    ['a failure without an id', { failed: [{ error: 'no' }] }, 'got undefined.'],
    ['a failure that is none', { failed: [undefined] }, 'got undefined.'],
  ])('that answers with what nobody can read has failed with all of them: %s', async (_what, answer, got) => {
    await bus.publish('counted', 1, 2)
    expect(await bus.poll({ h: batch(() => answer) })).toMatchObject({ succeeded: 0, retried: 2 })
    const [first] = await bus.attempts()
    expect(first).toMatchObject({
      error: 'InvalidOptionError',
      message: expect.stringMatching(/^Batch handler h: expected /),
    })
    expect(first?.message.endsWith(got)).toBe(true)
  })

  it('gets no event that does not fit its schema; those go to the dead letters', async () => {
    const small = defineEvent('counted', z.object({ n: z.number().max(2) }))
    const calls: unknown[] = []
    const h = defineHandler(
      small,
      { batch: true },
      (events) => void calls.push(events.map(({ payload }) => payload.n)),
    )
    await bus.publish('counted', 1, 3, 2)
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 2, dead: 1 })
    await bus.publish('counted', 4)
    expect(await bus.poll({ h })).toMatchObject({ succeeded: 0, dead: 1 })
    expect(calls).toEqual([[1, 2]])
    expect(await bus.deadLetters()).toMatchObject([
      { n: 3, reason: 'invalid', attempts: 0 },
      { n: 4, reason: 'invalid', attempts: 0 },
    ])
  })
})
