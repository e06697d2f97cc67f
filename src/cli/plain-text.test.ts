import { expect, it } from 'vitest'
import { count, countOf, cut, manyLines, oneLine, widthOf } from './plain-text.ts'

it('puts text of any origin on one line, without what would drive the terminal', () => {
  expect(oneLine(' two\r\n lines\tand \u001b[31mred\u001b[0m \u202ereversed\u0000 ')).toBe(
    'two lines and \uFFFD[31mred\uFFFD[0m \uFFFDreversed\uFFFD',
  )
})

it('keeps line ends where there may be some, and indents', () => {
  expect(manyLines('one\r\n\ttwo\u0007\n\nthree', '  ')).toBe('  one\n    two\uFFFD\n\n  three')
})

it('cuts by columns, also where a character takes two', () => {
  expect(cut('0123456789', 10)).toBe('0123456789')
  expect(cut('01234567890', 10)).toBe('012345678…')
  expect(cut('注文が完了しました', 10)).toBe('注文が完…')
  expect(widthOf('🚚 ok')).toBe(5)
  expect(cut('🚚🚚🚚', 4)).toBe('🚚…')
})

it('counts in words', () => {
  expect(count(1_234_567)).toBe('1,234,567')
  expect([0, 1, 2].map((number) => countOf(number, 'event'))).toEqual(['0 events', '1 event', '2 events'])
  expect([countOf(2, 'batch'), countOf(2, 'delivery'), countOf(1, 'delivery')]).toEqual([
    '2 batches',
    '2 deliveries',
    '1 delivery',
  ])
})
