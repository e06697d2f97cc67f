// Checked by tsc: an error that is expected and does not come is an error too.

import type { StandardSchemaV1 } from '@standard-schema/spec'
import { expectTypeOf, it } from 'vitest'
import * as z from 'zod'
import type { TransactionSql } from './db/client.ts'
import { defineEvent } from './event.ts'
import { type BatchEvent, defineHandler, type HandlerOptions } from './handler.ts'

const orderPlaced = defineEvent('order.placed', z.object({ orderId: z.string().transform(Number) }))
const typed = defineEvent<{ userId: string }>('user.added')
const untyped = defineEvent('user.removed')

it('gives a handler what its schema makes of the payload', () => {
  defineHandler(orderPlaced, {}, ({ id, payload, publishedAt }) => {
    expectTypeOf(payload).toEqualTypeOf<{ orderId: number }>()
    expectTypeOf(id).toEqualTypeOf<string>()
    expectTypeOf(publishedAt).toEqualTypeOf<Date>()
  })
  defineHandler(typed, {}, ({ payload }) => expectTypeOf(payload).toEqualTypeOf<{ userId: string }>())
  defineHandler(untyped, {}, ({ payload }) => expectTypeOf(payload).toEqualTypeOf<unknown>())
  // @ts-expect-error the payload has no such property
  defineHandler(orderPlaced, {}, ({ payload }) => payload.orderID)
})

it('gives a wildcard handler a payload of unknown type', () => {
  defineHandler('order.*', {}, ({ payload }) => expectTypeOf(payload).toEqualTypeOf<unknown>())
})

it('gives tx to transactional handlers only', () => {
  defineHandler(typed, { transactional: true }, (_event, { tx }) =>
    expectTypeOf(tx).toEqualTypeOf<TransactionSql>(),
  )
  defineHandler(typed, { transactional: true, batch: true }, (_events, { tx }) => {
    expectTypeOf(tx).toEqualTypeOf<TransactionSql>()
  })
  // @ts-expect-error a plain handler has no transaction
  defineHandler(typed, {}, (_event, { tx }) => tx)
  // @ts-expect-error nor has one that says so
  defineHandler(typed, { transactional: false }, (_event, { tx }) => tx)
  // @ts-expect-error nor has a batch handler
  defineHandler(typed, { batch: true }, (_events, { tx }) => void tx)
  const options: HandlerOptions = { transactional: true }
  // @ts-expect-error nor one of which nobody knows
  defineHandler(typed, options, (_event, { tx }) => tx)
})

it('gives a batch handler an array, each event with its own attempt and key', () => {
  defineHandler(orderPlaced, { batch: true }, (events, context) => {
    expectTypeOf(events).toEqualTypeOf<ReadonlyArray<BatchEvent<{ orderId: number }>>>()
    expectTypeOf(events[0]?.attempt).toEqualTypeOf<number | undefined>()
    expectTypeOf(events[0]?.idempotencyKey).toEqualTypeOf<string | undefined>()
    expectTypeOf(context.signal).toEqualTypeOf<AbortSignal>()
    // @ts-expect-error attempts are those of the events
    context.attempt
  })
  // @ts-expect-error a handler of single events gets no array
  defineHandler(orderPlaced, {}, (events) => events.length)
  // @ts-expect-error a batch handler gets no single event
  defineHandler(orderPlaced, { batch: true }, (event) => void event.payload)
})

it('asks a function to be ready for one event and for many, when nobody knows which it gets', () => {
  const options: HandlerOptions = { batch: true }
  const shared = { batch: true, maxAttempts: 5 }
  // @ts-expect-error it may be an array
  defineHandler(orderPlaced, options, (event) => event.payload)
  // @ts-expect-error it may be an array
  defineHandler(orderPlaced, shared, (event) => event.payload)
  // @ts-expect-error attempts are those of the events
  defineHandler(orderPlaced, shared, (_event, context) => context.attempt)
  defineHandler(orderPlaced, options, (input) => [input].flat().map(({ payload }) => payload.orderId))
  defineHandler(orderPlaced, { batch: false, maxAttempts: 5 }, (event) => event.payload.orderId)
  defineHandler(orderPlaced, { maxAttempts: 5 }, (event) => event.payload.orderId)
})

it('lets a batch handler return nothing, or which events failed', () => {
  defineHandler(typed, { batch: true }, () => {})
  defineHandler(typed, { batch: true }, async () => ({ failed: [{ id: '1', error: 'why' }] }))
  // @ts-expect-error ids are strings
  defineHandler(typed, { batch: true }, () => ({ failed: [{ id: 1, error: 'why' }] }))
  // @ts-expect-error nobody can know what this means
  defineHandler(typed, { batch: true }, () => ['1'])
  // @ts-expect-error nor this
  defineHandler(typed, { batch: true }, async () => true)
})

it('knows the options', () => {
  // @ts-expect-error misspelt
  expectTypeOf(() => defineHandler(typed, { maxAttemps: 3 }, () => {})).toBeFunction()
  // @ts-expect-error not a number
  expectTypeOf(() => defineHandler(typed, { maxAttempts: '3' }, () => {})).toBeFunction()
})

it('takes any Standard Schema', () => {
  const schema: StandardSchemaV1<string, Date> = {
    '~standard': { version: 1, vendor: 'own', validate: (value) => ({ value: new Date(String(value)) }) },
  }
  defineHandler(defineEvent('clock.struck', schema), {}, ({ payload }) =>
    expectTypeOf(payload).toEqualTypeOf<Date>(),
  )
})
