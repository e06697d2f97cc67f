import { expect, it } from 'vitest'
import { judgeConcurrency } from './account.ts'

it('takes an account with concurrency to spare', () => {
  expect(judgeConcurrency(4, { limit: 1_000, unreserved: 1_000, reserved: 0 })).toEqual([])
})

it('counts what an earlier deployment has reserved', () => {
  expect(judgeConcurrency(8, { limit: 20, unreserved: 14, reserved: 6 })).toEqual([])
})

it('tells a new account how to get more, and how to do without', () => {
  expect(judgeConcurrency(4, { limit: 10, unreserved: 10, reserved: 0 })).toEqual([
    {
      level: 'error',
      text: expect.stringMatching(
        /would leave 6[\s\S]*request-service-quota-increase[\s\S]*reservePollers=false/,
      ),
    },
  ])
})
