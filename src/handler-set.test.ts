import { describe, expect, it } from 'vitest'
import { InvalidOptionError } from './errors.ts'
import { defineHandler, type Handler } from './handler.ts'
import { defineHandlers } from './handler-set.ts'

const on = (pattern: string, options = {}): Handler => defineHandler(pattern, options, () => {})
const namesOf = (handlers: ReadonlyArray<{ readonly name: string }>): string[] =>
  handlers.map(({ name }) => name)

describe('names', () => {
  it('are the keys, or those of pairs', () => {
    expect(namesOf(defineHandlers({ mail: on('a'), stock: on('b') }).handlers)).toEqual(['mail', 'stock'])
    expect(namesOf(defineHandlers([['mail', on('a')]]).handlers)).toEqual(['mail'])
  })

  it('give way to a name of the handler’s own, whatever the file is called', () => {
    const set = defineHandlers({ 'a file, with spaces': on('a', { name: 'mail' }) })
    expect(namesOf(set.handlers)).toEqual(['mail'])
    expect(set.find('mail')?.pattern).toBe('a')
    expect(set.find('a file, with spaces')).toBeUndefined()
  })

  it('must be unique', () => {
    expect(() => defineHandlers({ mail: on('a'), other: on('b', { name: 'mail' }) })).toThrow(
      new InvalidOptionError('Two handlers are named "mail": rename one, or give it the option "name".'),
    )
  })

  it('must be names', () => {
    for (const key of ['', 'send mail', 'a'.repeat(201)])
      expect(() => defineHandlers({ [key]: on('a') })).toThrow(`got "${key}".`)
  })
})

it('takes nothing but handlers', () => {
  for (const other of [undefined, null, () => {}, { default: on('a') }])
    expect(() => defineHandlers({ mail: other as never })).toThrow(
      /Expected "mail" to be a handler made by defineHandler/,
    )
})

it('may be empty', () => {
  expect(defineHandlers({}).handlers).toEqual([])
  expect(defineHandlers({}).route('a')).toEqual([])
})

describe('a route', () => {
  const { route } = defineHandlers({
    all: on('*'),
    orders: on('order.*'),
    placed: on('order.placed'),
    user: on('user.*'),
  })

  it('is every handler that takes the event, in the order of the set', () => {
    expect(namesOf(route('order.placed'))).toEqual(['all', 'orders', 'placed'])
    expect(namesOf(route('order.shipped'))).toEqual(['all', 'orders'])
    expect(namesOf(route('order'))).toEqual(['all'])
  })

  it('stays right for more names than it remembers', () => {
    for (let n = 0; n < 10_100; n++) route(`order.n${n}`)
    expect(namesOf(route('order.n10099'))).toEqual(['all', 'orders'])
    expect(namesOf(route('user.new'))).toEqual(['all', 'user'])
  })
})

describe('the hash', () => {
  const hash = (handlers: Record<string, Handler>): string => defineHandlers(handlers).hash

  it('is the same whatever the order and the options', () => {
    const one = hash({ a: on('x'), b: on('y.*') })
    expect(one).toMatch(/^[0-9a-f]{64}$/)
    expect(hash({ b: on('y.*', { maxAttempts: 9 }), a: on('x', { transactional: true }) })).toBe(one)
  })

  it('tells sets of other names or patterns apart', () => {
    const sets = [
      {},
      { a: on('x') },
      { a: on('y') },
      { b: on('x') },
      { a: on('x.*') },
      { a: on('x'), b: on('x') },
    ]
    expect(new Set(sets.map(hash)).size).toBe(sets.length)
  })
})
