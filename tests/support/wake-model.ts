/**
 * The handshake between publishers and pollers as a state machine, small enough to look at every interleaving. Each
 * step is atomic, as the statement behind it is: a lock, a read, a commit.
 */

/** Steps that a variant leaves out, to see that the check notices. */
export type LeftOut =
  | 'publisher takes the lock'
  | 'poller takes the lock'
  | 'poller looks once more under the lock'
  | 'poller clears the mark'
  | 'rolled-back publishers invoke too'

interface Publisher {
  /** begin → insert → lock → read mark → (mark → invoke) → commit or rollback → done. */
  readonly at: 'begin' | 'inserted' | 'locked' | 'marks' | 'invokes' | 'ready' | 'done'
  /** `leave`: a helper that gives back what it cannot finish, and then asks as a publisher does. */
  readonly outcome: 'commit' | 'rollback' | 'leave'
}

interface Poller {
  /** absent → claiming → (found: claiming) or (empty: locking) → looking → clearing → unlocking → absent. */
  readonly at: 'absent' | 'claiming' | 'locking' | 'looking' | 'clearing' | 'unlocking'
}

export interface WakeState {
  readonly publishers: ReadonlyArray<Publisher>
  readonly pollers: ReadonlyArray<Poller>
  /** The mark says that somebody is awake. */
  readonly isMarked: boolean
  /** Invocations on their way. */
  readonly invocations: number
  /** Publishers that hold the lock shared. */
  readonly shared: ReadonlyArray<number>
  /** The poller that holds it exclusively. */
  readonly exclusive: number | null
  /** Events that are committed and not claimed. */
  readonly unclaimed: number
}

/** What each can do next, in every order: the successors of a state. */
function wakeSteps(state: WakeState, leftOut: LeftOut | null): WakeState[] {
  return [
    ...state.publishers.flatMap((publisher, index) => publisherStep(state, publisher, index, leftOut)),
    ...state.pollers.flatMap((poller, index) => pollerStep(state, poller, index, leftOut)),
  ]
}

export function firstWakeState(outcomes: ReadonlyArray<Publisher['outcome']>, pollers: number): WakeState {
  return {
    publishers: outcomes.map((outcome) => ({ at: 'begin', outcome })),
    pollers: Array.from({ length: pollers }, () => ({ at: 'absent' })),
    isMarked: false,
    invocations: 0,
    shared: [],
    exclusive: null,
    unclaimed: 0,
  }
}

function publisherStep(
  state: WakeState,
  publisher: Publisher,
  index: number,
  leftOut: LeftOut | null,
): WakeState[] {
  const become = (at: Publisher['at'], change: Partial<WakeState> = {}): WakeState[] => [
    {
      ...state,
      ...change,
      publishers: state.publishers.map((one, place) => (place === index ? { ...one, at } : one)),
    },
  ]
  switch (publisher.at) {
    case 'begin':
      return become('inserted', {
        unclaimed: state.unclaimed + (publisher.outcome === 'leave' ? 1 : 0),
      })
    case 'inserted':
      if (leftOut === 'publisher takes the lock') return become('locked')
      if (state.exclusive !== null) return [] // waits
      return become('locked', { shared: [...state.shared, index] })
    case 'locked': // reads the mark
      return become(state.isMarked ? 'ready' : 'marks')
    case 'marks':
      return become('invokes', { isMarked: true })
    case 'invokes':
      if (leftOut === 'rolled-back publishers invoke too' && publisher.outcome === 'rollback')
        return become('ready')
      return become('ready', { invocations: state.invocations + 1 })
    case 'ready':
      return become('done', {
        shared: state.shared.filter((one) => one !== index),
        unclaimed: state.unclaimed + (publisher.outcome === 'commit' ? 1 : 0),
      })
    case 'done':
      return []
  }
}

function pollerStep(state: WakeState, poller: Poller, index: number, leftOut: LeftOut | null): WakeState[] {
  const become = (at: Poller['at'], change: Partial<WakeState> = {}): WakeState => ({
    ...state,
    ...change,
    pollers: state.pollers.map((one, place) => (place === index ? { at } : one)),
  })
  switch (poller.at) {
    case 'absent': // says that it is awake, and claims
      return state.invocations > 0
        ? [become('claiming', { invocations: state.invocations - 1, isMarked: true })]
        : []
    case 'claiming':
      return [state.unclaimed > 0 ? become('claiming', { unclaimed: 0, isMarked: true }) : become('locking')]
    case 'locking':
      if (leftOut === 'poller takes the lock') return [become('looking')]
      return [
        state.shared.length > 0 || state.exclusive !== null
          ? become('claiming')
          : become('looking', { exclusive: index }),
      ]
    case 'looking':
      return [
        state.unclaimed > 0 && leftOut !== 'poller looks once more under the lock'
          ? become('claiming', { exclusive: null })
          : become('clearing'),
      ]
    case 'clearing':
      return [
        become('unlocking', { isMarked: leftOut === 'poller clears the mark' ? state.isMarked : false }),
      ]
    case 'unlocking':
      return [become('absent', { exclusive: state.exclusive === index ? null : state.exclusive })]
  }
}

/** Visits every state that can be reached, up to one where nothing can happen any more while an event waits; the path to it. */
export function explore(
  first: WakeState,
  leftOut: LeftOut | null,
): { states: number; lost: WakeState[] | null } {
  const key = (state: WakeState): string => JSON.stringify(state)
  const seen = new Map<string, WakeState | null>([[key(first), null]])
  const queue = [first]
  for (let state = queue.shift(); state !== undefined; state = queue.shift()) {
    const next = wakeSteps(state, leftOut).filter((one) => key(one) !== key(state as WakeState))
    if (next.length === 0 && state.unclaimed > 0) return { states: seen.size, lost: pathTo(state, seen, key) }
    for (const one of next) {
      if (seen.has(key(one))) continue
      seen.set(key(one), state)
      queue.push(one)
    }
  }
  return { states: seen.size, lost: null }
}

function pathTo(
  end: WakeState,
  seen: ReadonlyMap<string, WakeState | null>,
  key: (state: WakeState) => string,
): WakeState[] {
  const path: WakeState[] = []
  for (let state: WakeState | null = end; state !== null; state = seen.get(key(state)) ?? null)
    path.unshift(state)
  return path
}
