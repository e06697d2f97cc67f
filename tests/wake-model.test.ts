import { describe, expect, it } from 'vitest'
import { explore, firstWakeState, type LeftOut } from './support/wake-model.ts'

// The handshake in every interleaving of two publishers, or helpers that leave something, and two pollers, with no schedule
// to make up for anything.

const outcomes = [
  ['commit', 'commit'],
  ['commit', 'rollback'],
  ['rollback', 'commit'],
  ['rollback', 'rollback'],
  ['leave', 'commit'],
  ['leave', 'rollback'],
  ['leave', 'leave'],
] as const

/** Of all interleavings the first, if any, that leaves an event without a poller. */
function firstLost(leftOut: LeftOut | null): object | null {
  for (const [one, other] of outcomes) {
    const { lost } = explore(firstWakeState([one, other], 2), leftOut)
    if (lost !== null) return lost
  }
  return null
}

describe('the handshake', () => {
  it('loses no event, whatever the order of its steps', () => {
    expect(firstLost(null)).toBeNull()
    const { states } = explore(firstWakeState(['commit', 'commit'], 2), null)
    expect(states).toBeGreaterThan(400)
  })

  it.each<LeftOut>([
    'publisher takes the lock',
    'poller takes the lock',
    'poller looks once more under the lock',
    'poller clears the mark',
    'rolled-back publishers invoke too',
  ])('loses one when this is left out: %s', (leftOut) => {
    expect(firstLost(leftOut)).not.toBeNull()
  })
})
