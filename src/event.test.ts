import type { StandardSchemaV1 } from '@standard-schema/spec'
import * as v from 'valibot'
import { describe, expect, expectTypeOf, test } from 'vitest'
import * as z from 'zod'
import { InvalidEventError } from './errors.ts'
import {
  defineEvent,
  type EventDefinition,
  type InputOf,
  isEventName,
  type OutgoingEvent,
  type OutputOf,
  validatePayload,
} from './event.ts'

const thrownBy = (act: () => unknown): unknown => {
  try {
    act()
  } catch (error) {
    return error
  }
  throw new Error('Nothing was thrown.')
}

describe('defineEvent', () => {
  test('makes a constructor that knows its name and schema', () => {
    const schema = z.object({ orderId: z.number() })
    const orderPlaced = defineEvent('order.placed', schema)
    expect(orderPlaced.eventName).toBe('order.placed')
    expect(orderPlaced.schema).toBe(schema)
    expect(orderPlaced({ orderId: 1 })).toEqual({
      name: 'order.placed',
      payload: { orderId: 1 },
      definition: orderPlaced,
    })
  })

  test('types the payload by the schema: its input for publishers, its output for handlers', () => {
    const zod = defineEvent('a', z.object({ n: z.string().transform(Number) }))
    expectTypeOf(zod).parameter(0).toEqualTypeOf<{ n: string }>()
    expectTypeOf<InputOf<typeof zod>>().toEqualTypeOf<{ n: string }>()
    expectTypeOf<OutputOf<typeof zod>>().toEqualTypeOf<{ n: number }>()
    const valibot = defineEvent('b', v.object({ n: v.pipe(v.string(), v.transform(Number)) }))
    expectTypeOf<InputOf<typeof valibot>>().toEqualTypeOf<{ n: string }>()
    expectTypeOf<OutputOf<typeof valibot>>().toEqualTypeOf<{ n: number }>()
    expectTypeOf(valibot.eventName).toEqualTypeOf<'b'>()
    // @ts-expect-error the payload has another type
    zod({ n: 1 })
  })

  test('types the payload without a schema when asked to', () => {
    const typed = defineEvent<{ orderId: number }>('order.placed')
    expectTypeOf(typed).parameter(0).toEqualTypeOf<{ orderId: number }>()
    expectTypeOf<OutputOf<typeof typed>>().toEqualTypeOf<{ orderId: number }>()
    const untyped = defineEvent('order.placed')
    expectTypeOf(untyped).parameter(0).toEqualTypeOf<unknown>()
    expectTypeOf(untyped.eventName).toEqualTypeOf<'order.placed'>()
  })

  test('gives definitions and events of every kind one common type', () => {
    const orderPlaced = defineEvent('order.placed', z.object({ orderId: z.number() }))
    expectTypeOf(orderPlaced).toExtend<EventDefinition>()
    expectTypeOf(orderPlaced({ orderId: 1 })).toExtend<OutgoingEvent>()
    expectTypeOf<OutputOf<EventDefinition<'order.placed', never, { a: 1 }>>>().toEqualTypeOf<{ a: 1 }>()
  })

  test('refuses what is not a Standard Schema', () => {
    for (const [schema, got] of [
      [{ type: 'object' }, 'an object'],
      [[], 'an array'],
      [null, 'null'],
      ['string', '"string"'],
      [{ '~standard': null }, 'an object'],
    ]) {
      const error = thrownBy(() => defineEvent('order.placed', schema as unknown as StandardSchemaV1))
      expect(error).toBeInstanceOf(InvalidEventError)
      expect(error).toMatchObject({
        code: 'INVALID_OPTION',
        eventName: 'order.placed',
        message: `Expected the schema of order.placed to be a Standard Schema (zod, valibot, arktype …), got ${got}.`,
      })
    }
  })
})

describe('event names', () => {
  test.for([
    'a',
    '0',
    'order.placed',
    'github.pull_request.ready-for-review',
    'a.b.c.d.e',
    '-._',
    'x'.repeat(200),
  ])('accepts %s', (name) => {
    expect(isEventName(name)).toBe(true)
    expect(defineEvent(name).eventName).toBe(name)
  })

  test.for([
    '',
    '.',
    'a.',
    '.a',
    'a..b',
    'Order.placed',
    'order placed',
    'order.*',
    '*',
    'a\n',
    'a\0',
    'é',
    'ß.x',
    'a/b',
    'a:b',
    'x'.repeat(201),
    undefined,
    null,
    1,
    {},
  ])('refuses %j', (name) => {
    expect(isEventName(name)).toBe(false)
    expect(thrownBy(() => defineEvent(name as string))).toMatchObject({
      name: 'InvalidEventError',
      code: 'INVALID_NAME',
    })
  })

  test('says what a name may be and what it got', () => {
    const rule =
      'Expected an event name of 1–200 characters, dotted lower-case words (letters, digits, _, -), got'
    expect(thrownBy(() => defineEvent('Order placed'))).toMatchObject({
      message: `${rule} "Order placed".`,
      eventName: 'Order placed',
    })
    expect(thrownBy(() => defineEvent('x'.repeat(201)))).toMatchObject({ message: `${rule} 201 characters.` })
    expect(thrownBy(() => defineEvent(undefined as unknown as string))).toMatchObject({
      message: `${rule} undefined.`,
    })
  })
})

describe('validatePayload', () => {
  const definitions = {
    zod: defineEvent(
      'a',
      z.object({ items: z.array(z.object({ sku: z.string(), count: z.number().default(1) })) }),
    ),
    valibot: defineEvent(
      'a',
      v.object({ items: v.array(v.object({ sku: v.string(), count: v.optional(v.number(), 1) })) }),
    ),
  }

  test.for(Object.entries(definitions))(
    'answers at once with the output of a %s schema',
    ([, definition]) => {
      expect(validatePayload(definition, { items: [{ sku: 'A' }] })).toMatchObject({
        value: { items: [{ sku: 'A', count: 1 }] },
      })
    },
  )

  test.for(Object.entries(definitions))(
    'gives the issues of a %s schema with plain paths',
    ([, definition]) => {
      const validation = validatePayload(definition, { items: [{ sku: 'A' }, { sku: 2 }] })
      expect(validation).toEqual({
        issues: [{ message: expect.stringMatching(/^Invalid/), path: ['items', 1, 'sku'] }],
      })
    },
  )

  test('takes anything when the event has no schema', () => {
    const value = { any: ['thing'] }
    expect(validatePayload(defineEvent('a'), value)).toEqual({ value })
  })

  test('waits for an asynchronous schema', async () => {
    const later = z
      .object({ n: z.number() })
      .refine((value) => Promise.resolve(value.n > 0), { path: ['n'], error: 'Too small' })
    const definition = defineEvent('a', later)
    const validation = validatePayload(definition, { n: 0 })
    expect(validation).toBeInstanceOf(Promise)
    expect(await validation).toEqual({ issues: [{ message: 'Too small', path: ['n'] }] })
    expect(await validatePayload(definition, { n: 1 })).toEqual({ value: { n: 1 } })
  })

  test('gives an issue without a path the empty one', () => {
    const schema: StandardSchemaV1<string> = {
      '~standard': { version: 1, vendor: 'test', validate: () => ({ issues: [{ message: 'No' }] }) },
    }
    expect(validatePayload(defineEvent('a', schema), 1)).toEqual({ issues: [{ message: 'No', path: [] }] })
  })

  test('passes on what a schema throws', () => {
    const schema: StandardSchemaV1<string> = {
      '~standard': {
        version: 1,
        vendor: 'test',
        validate: () => {
          throw new RangeError('broken schema')
        },
      },
    }
    expect(() => validatePayload(defineEvent('a', schema), 1)).toThrow(RangeError)
  })
})
