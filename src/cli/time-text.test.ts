import { expect, it } from 'vitest'
import { duration, instant, relative } from './time-text.ts'

const now = new Date('2030-01-01T00:00:00Z')
const away = (seconds: number): Date => new Date(now.getTime() + seconds * 1000)

it.each([
  [0, 'now'],
  [0.4, 'now'],
  [-0.4, 'now'],
  [0.6, 'in 1 s'],
  [12, 'in 12 s'],
  [-119, '119 s ago'],
  [120, 'in 2 min'],
  [-7_300, '2 h ago'],
  [172_800, 'in 2 d'],
])('says %d seconds away as: %s', (seconds, text) => {
  expect(relative(away(seconds), now)).toBe(text)
})

it('gives the instant and how far it is', () => {
  expect(instant(away(12), now)).toBe('2030-01-01T00:00:12.000Z (in 12 s)')
})

it('gives milliseconds up to a second, then seconds', () => {
  expect([0.4, 999.4, 1_240].map(duration)).toEqual(['0 ms', '999 ms', '1.2 s'])
})
