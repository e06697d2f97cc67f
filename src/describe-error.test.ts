import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { describeError } from './describe-error.ts'

const nul = '\u0000'
const replacement = '\uFFFD'

describe('an error', () => {
  it('is described by its name, message and stack', () => {
    const error = new RangeError('too far')
    expect(describeError(error)).toEqual({
      errorClass: 'RangeError',
      errorMessage: 'too far',
      errorStack: error.stack,
    })
  })

  it('goes by its own name, not by that of its class, which a bundler may shorten', () => {
    class A extends Error {
      override readonly name = 'PaymentRefused'
    }
    expect(describeError(new A('no')).errorClass).toBe('PaymentRefused')
    expect(describeError(Object.assign(new Error('x'), { name: '' })).errorClass).toBe('Error')
  })

  it('is followed by its causes, down to one that is no error', () => {
    const error = new Error('outer', { cause: new TypeError('inner', { cause: { code: 42 } }) })
    expect(describeError(error).errorStack).toMatch(
      /^Error: outer\n.*\ncaused by: TypeError: inner\n.*\ncaused by: \{ code: 42 \}$/s,
    )
  })

  it('may be its own cause, at any distance', () => {
    const outer = new Error('outer')
    const inner = new Error('inner', { cause: outer })
    outer.cause = inner
    const { errorStack } = describeError(outer)
    expect(errorStack?.match(/outer/g)).toHaveLength(1)
    expect(errorStack?.match(/caused by: Error: inner/g)).toHaveLength(1)
    const self = new Error('self')
    self.cause = self
    expect(describeError(self).errorStack).not.toContain('caused by')
  })

  it('names ten causes at most', () => {
    let error = new Error('cause 0')
    for (let n = 1; n < 100; n++) error = new Error(`cause ${n}`, { cause: error })
    expect(describeError(error).errorStack?.match(/cause \d+/g)).toHaveLength(10)
  })

  it('may lack a stack', () => {
    const error = Object.assign(new Error('bare'), { stack: undefined })
    expect(describeError(error).errorStack).toBe('Error: bare')
  })

  it('may come from another realm', () => {
    const error: unknown = runInNewContext('new TypeError("far away")')
    expect(describeError(error)).toMatchObject({ errorClass: 'TypeError', errorMessage: 'far away' })
  })
})

describe('something thrown that is no error', () => {
  const cyclic: Record<string, unknown> = { name: 'cyclic' }
  cyclic['self'] = cyclic

  it.each([
    ['a string', 'out of paper', "'out of paper'"],
    ['undefined', undefined, 'undefined'],
    ['null', null, 'null'],
    ['a symbol', Symbol('stop'), 'Symbol(stop)'],
    ['an object', { status: 503 }, '{ status: 503 }'],
    ['an object without a prototype', Object.assign(Object.create(null), { a: 1 }), '{ a: 1 }'],
    ['an object that contains itself', cyclic, '[Circular *1]'],
  ])('is shown: %s', (_what, thrown, shown) => {
    const description = describeError(thrown)
    expect(description).toMatchObject({ errorClass: 'NonError', errorStack: null })
    expect(description.errorMessage).toMatch(/^Thrown, and not an Error: /)
    expect(description.errorMessage).toContain(shown)
  })
})

describe('something that resists', () => {
  const refuse = (): never => {
    throw new Error('refused')
  }

  it.each([
    ['a message that throws', Object.defineProperty(new Error(), 'message', { get: refuse })],
    ['a stack that throws', Object.defineProperty(new Error('x'), 'stack', { get: refuse })],
    ['a name that is no string', Object.assign(new Error('x'), { name: { toString: refuse } })],
    ['a proxy that throws', new Proxy({}, { get: refuse, getPrototypeOf: refuse, ownKeys: refuse })],
    ['an inspection that throws', { [Symbol.for('nodejs.util.inspect.custom')]: refuse }],
  ])('is described all the same: %s', (_what, thrown) => {
    const { errorClass, errorMessage } = describeError(thrown)
    expect(errorClass).not.toBe('')
    expect(errorMessage).not.toBe('')
  })
})

describe('text that Postgres can not keep', () => {
  it('loses U+0000 and halves of surrogate pairs, and keeps whole pairs', () => {
    const error = Object.assign(new Error(`a${nul}b \uD800 c \uDC00 😀`), { name: `N${nul}` })
    const { errorClass, errorMessage, errorStack } = describeError(error)
    expect(errorClass).toBe(`N${replacement}`)
    expect(errorMessage).toBe(`a${replacement}b ${replacement} c ${replacement} 😀`)
    expect(errorStack).not.toContain(nul)
    expect(errorStack?.isWellFormed()).toBe(true)
  })

  it('is shortened: messages to 8 KiB, stacks to 16 KiB, with a mark, and never in the middle of a pair', () => {
    const { errorMessage, errorStack } = describeError(new Error(`x${'😀'.repeat(20_000)}`))
    expect(errorMessage).toHaveLength(8_192)
    expect(errorMessage.endsWith('…')).toBe(true)
    expect(errorStack).toHaveLength(16_384)
    expect(`${errorMessage}${errorStack}`.isWellFormed()).toBe(true)
  })
})
