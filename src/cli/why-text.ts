import type { BatchRecord, DeliveryRecord, EventHistory } from './event-history.ts'
import { countOf } from './plain-text.ts'
import { instant, relative } from './time-text.ts'
import { reasons } from './write-dead-letter.ts'

const waitsBecause: Readonly<Record<string, string>> = {
  delayed: 'delayed by its publisher',
  retry: 'to be tried again',
  released: 'given back unstarted',
  recovered: 'its poller died',
  rebased: 'the database moved to another cluster',
  redriven: 'taken back from the dead letters',
}

/** In a few words: what happens to the event now. */
export function verdict(
  { state, batches, deliveries, dead, handlers, failures }: EventHistory,
  now: Date,
): string {
  switch (state) {
    case 'unclaimed':
      return 'not claimed yet; the next poll takes it in its turn'
    case 'leased':
      return 'being handled by a poll'
    case 'open':
      return `claimed, not settled: ${batches.at(-1)?.claimedAt === null ? 'given back' : 'free again'}; the next poll takes it`
    case 'waiting':
      return waitingText(deliveries, now)
    case 'dead':
      return `dead for ${dead.map(({ handler }) => handler).join(', ')}`
    case 'unhandled':
      return 'unhandled; no registered handler takes it, it stays in the log'
    case 'handled':
      if (handlers === null && failures.length === 0)
        return 'settled; no handlers are registered to tell who took it'
      return failures.length === 0 ? 'handled' : 'handled, after failures'
  }
}

/** When a batch was claimed and settled. */
export function batchText(batch: BatchRecord, now: Date): string {
  const { splitFrom, claimedAt, settledAt, isLeased, leasedUntil, size } = batch
  const claimed = claimedAt === null ? 'free to be claimed' : `claimed ${instant(claimedAt, now)}`
  const end =
    settledAt !== null
      ? `settled ${relative(settledAt, now)}`
      : isLeased
        ? `lease ends ${relative(leasedUntil, now)}`
        : 'not settled'
  const part = splitFrom === null ? '' : `, rest of batch ${splitFrom}`
  return `${claimed}, ${end}, ${countOf(size, 'event')}${part}`
}

/** Each handler that takes the event, or once took it, and what it has left to do. */
export function handlerStates(history: EventHistory, now: Date): [name: string, state: string][] {
  const { handlers, deliveries, dead, failures } = history
  const names = new Set([
    ...(handlers ?? []).map(({ name }) => name),
    ...deliveries.map(({ handler }) => handler ?? ''),
    ...dead.map(({ handler }) => handler),
    ...failures.map(({ handler }) => handler),
  ])
  const isRegistered = (name: string): boolean => handlers?.some((handler) => handler.name === name) ?? true
  return [...names].sort().map((name) => {
    const label = name === '' ? '(each that takes it)' : name
    const gone = name === '' || isRegistered(name) ? '' : '; not registered any more'
    return [label, `${stateOf(history, name, now)}${gone}`]
  })
}

function stateOf({ state, deliveries, dead, failures }: EventHistory, name: string, now: Date): string {
  const delivery = deliveries.find(({ handler }) => (handler ?? '') === name)
  if (delivery) return deliveryText(delivery, now)
  const letter = dead.find(({ handler }) => handler === name)
  if (letter) return `dead ${relative(letter.diedAt, now)}: ${reasons[letter.reason] ?? letter.reason}`
  if (state === 'unclaimed' || state === 'open') return 'waits for a poll'
  if (deliveries.some(({ handler }) => handler === null)) return 'waits with the event'
  if (state === 'leased' && deliveries.length === 0) return 'being handled'
  return failures.some(({ handler }) => handler === name) ? 'succeeded at last' : 'done'
}

function deliveryText({ reason, attempt, isLeased, dueAt, alone }: DeliveryRecord, now: Date): string {
  const because = waitsBecause[reason] ?? reason
  const failed = attempt === 0 ? '' : `, ${countOf(attempt, 'failed attempt')}`
  if (isLeased) return `being handled${alone ? ' alone' : ''}, lease ends ${relative(dueAt, now)}${failed}`
  return `due ${instant(dueAt, now)}, ${because}${failed}`
}

function waitingText(deliveries: ReadonlyArray<DeliveryRecord>, now: Date): string {
  const next = deliveries.reduce((first, one) => (one.dueAt < first.dueAt ? one : first))
  const who = next.handler === null ? '' : ` for ${next.handler}`
  const when = next.dueAt <= now ? 'due now' : `due ${relative(next.dueAt, now)}`
  return `waits${who}, ${when}: ${waitsBecause[next.reason] ?? next.reason}`
}
