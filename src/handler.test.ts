import { describe, expect, it } from 'vitest'
import { InvalidOptionError } from './errors.ts'
import { defineEvent } from './event.ts'
import { defineHandler, type HandlerOptions, isHandler, isPattern, matches } from './handler.ts'

const orderPlaced = defineEvent<{ orderId: number }>('order.placed')
const nothing = (): void => {}

/** `defineHandler` as a caller without types would use it. */
const define = defineHandler as (on: unknown, options: unknown, run: unknown) => unknown

describe('a handler', () => {
  it('has the documented defaults', () => {
    expect(defineHandler(orderPlaced, {}, nothing)).toMatchObject({
      name: null,
      pattern: 'order.placed',
      definition: orderPlaced,
      transactional: false,
      batch: false,
      maxAttempts: 3,
      baseDelaySeconds: 15,
      maxDelaySeconds: 3_600,
      jitter: 0.2,
      timeoutSeconds: 30,
      concurrency: Number.POSITIVE_INFINITY,
    })
  })

  it('keeps what it is given, to the ends of each range', () => {
    const least = { maxAttempts: 1, baseDelaySeconds: 0, maxDelaySeconds: 0, jitter: 0, concurrency: 1 }
    const most = {
      maxAttempts: 65_535,
      baseDelaySeconds: 86_400,
      maxDelaySeconds: 2_592_000,
      jitter: 1,
      timeoutSeconds: 900,
      concurrency: 1_000,
    }
    for (const options of [
      { ...least, timeoutSeconds: 0.001 },
      most,
      { transactional: true, batch: true, name: 'A-b_c.1' },
    ])
      expect(defineHandler(orderPlaced, options, nothing)).toMatchObject(options)
  })

  it('takes an event name or a wildcard, without a definition', () => {
    expect(defineHandler('order.*', {}, nothing)).toMatchObject({ pattern: 'order.*', definition: null })
    expect(defineHandler('order.placed', {}, nothing).definition).toBeNull()
  })

  it('is told from anything else, also when another copy of the library made it', () => {
    expect(isHandler(defineHandler(orderPlaced, {}, nothing))).toBe(true)
    expect(isHandler({ [Symbol.for('loopless.handler')]: true })).toBe(true)
    for (const other of [null, undefined, {}, nothing, 'order.placed', { default: nothing }])
      expect(isHandler(other)).toBe(false)
  })
})

describe('an option out of range', () => {
  it.each<[keyof HandlerOptions, unknown, string]>([
    ['maxAttempts', 0, 'a whole number of 1–65535, got 0.'],
    ['maxAttempts', 65_536, 'a whole number of 1–65535, got 65536.'],
    ['maxAttempts', 2.5, 'a whole number of 1–65535, got 2.5.'],
    ['maxAttempts', '3', 'a whole number of 1–65535, got "3".'],
    ['maxAttempts', null, 'a whole number of 1–65535, got null.'],
    ['baseDelaySeconds', -1, '0–86400 seconds, got -1.'],
    ['baseDelaySeconds', 86_401, '0–86400 seconds, got 86401.'],
    ['baseDelaySeconds', Number.NaN, '0–86400 seconds, got NaN.'],
    ['maxDelaySeconds', 2_592_001, '0–2592000 seconds, got 2592001.'],
    ['maxDelaySeconds', Number.POSITIVE_INFINITY, '0–2592000 seconds, got Infinity.'],
    ['jitter', 1.01, 'a number of 0–1, got 1.01.'],
    ['jitter', -0.1, 'a number of 0–1, got -0.1.'],
    ['timeoutSeconds', 0, 'more than 0 and at most 900 seconds, got 0.'],
    ['timeoutSeconds', 901, 'more than 0 and at most 900 seconds, got 901.'],
    ['concurrency', 0, 'a whole number of 1–1000, got 0.'],
    ['concurrency', Number.POSITIVE_INFINITY, 'a whole number of 1–1000, got Infinity.'],
    ['concurrency', {}, 'a whole number of 1–1000, got an object.'],
    ['transactional', 'yes', 'a boolean, got "yes".'],
    ['batch', 1, 'a boolean, got 1.'],
  ])('is refused, with the handler, the option, expected and got: %s %s', (option, value, message) => {
    const handler = (): unknown => define(orderPlaced, { name: 'send-mail', [option]: value }, nothing)
    expect(handler).toThrow(new InvalidOptionError(`Handler send-mail: expected ${option} to be ${message}`))
  })

  it('names the handler by its event when it has no name of its own yet', () => {
    expect(() => define('order.*', { maxAttempts: 0 }, nothing)).toThrow(
      /^Handler for "order\.\*": expected maxAttempts /,
    )
  })
})

describe('what is no definition of a handler', () => {
  it.each([
    [
      'an option that does not exist',
      orderPlaced,
      { maxAttemps: 3 },
      nothing,
      /expected the options to be some of name, .*, got "maxAttemps"/,
    ],
    [
      'a name that is none',
      orderPlaced,
      { name: 'send mail' },
      nothing,
      /expected name to be 1–200 letters, .*, got "send mail"/,
    ],
    ['a name that is empty', orderPlaced, { name: '' }, nothing, /expected name to be/],
    ['a name that is too long', orderPlaced, { name: 'a'.repeat(201) }, nothing, /expected name to be/],
    ['no options', orderPlaced, undefined, nothing, /expected the options to be an object, got undefined/],
    ['no function', orderPlaced, {}, undefined, /expected the last argument to be a function, got undefined/],
    ['no event', undefined, {}, nothing, /expected the event to be an event definition, .*, got undefined/],
    ['an event that was made', orderPlaced({ orderId: 1 }), {}, nothing, /expected the event to be/],
    [
      'a wildcard in the middle',
      'order.*.placed',
      {},
      nothing,
      /expected the event to be .*, got "order\.\*\.placed"/,
    ],
  ])('is refused: %s', (_what, on, options, run, message) => {
    const definition = (): unknown => define(on, options, run)
    expect(definition).toThrow(InvalidOptionError)
    expect(definition).toThrow(message)
  })
})

describe('a pattern', () => {
  it.each(['*', 'a', 'order.*', 'order.placed', 'a-b_c.d9.*', 'a'.repeat(200)])('may be %s', (pattern) => {
    expect(isPattern(pattern)).toBe(true)
  })

  it.each(['', '.', '**', '*.a', 'a*', 'a.', 'a..b', 'a.*.b', 'A', 'a b', 'é', 'a'.repeat(201)])(
    'is not %s',
    (pattern) => {
      expect(isPattern(pattern)).toBe(false)
    },
  )

  it('matches the name it is, all names below a prefix, or every name', () => {
    const names = ['order', 'order.placed', 'order.line.added', 'orders.placed', 'border.placed']
    const matched = (pattern: string): string[] => names.filter((name) => matches(pattern, name))
    expect(matched('order.placed')).toEqual(['order.placed'])
    expect(matched('order.*')).toEqual(['order.placed', 'order.line.added'])
    expect(matched('order.line.*')).toEqual(['order.line.added'])
    expect(matched('*')).toEqual(names)
  })
})
