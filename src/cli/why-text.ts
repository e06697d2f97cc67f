import type { BatchRecord, DeliveryRecord, EventHistory } from './event-history.ts'
import { countOf } from './plain-text.ts'
import { instant, relative } from './time-text.ts'
import { reasons } from './write-dead-letter.ts'

const waitsBecause: Readonly<Record<string, string>> = {
  delayed: 'delayed by its publisher',
  retry: 'to be tried again',
  released: 'given back unstarted',
  recovered: 'its poller died',
  rebased: 'moved from another cluster',
  redriven: 'redriven',
}

/** In a few words: what happens to the event now. */
export function verdict({ state, deliveries, dead, handlers, failures }: EventHistory, now: Date): string {
  switch (state) {
    case 'unclaimed':
      return 'not claimed yet'
    case 'leased':
      return 'being handled by a poll'
    case 'open':
      return 'given back by a poll, free to be claimed'
    case 'waiting':
      return waitingText(deliveries, now)
    case 'dead':
      return `dead for ${dead.map(({ handler }) => handler).join(', ')}`
    case 'unhandled':
      return 'unhandled: no registered handler takes it'
    case 'handled':
      if (handlers === null && failures.length === 0)
        return 'settled; no handlers are registered to tell who took it'
      return failures.length === 0 ? 'handled' : 'handled, after failures'
  }
}

/** Facts about a batch: which, when it was claimed and settled, and between which snapshots it lies. */
export function batchFacts(batch: BatchRecord, now: Date): [label: string, fact: string][] {
  const { id, splitFrom, claimedAt, settledAt, isLeased, leasedUntil, size, fromSnapshot, toSnapshot } = batch
  const part = splitFrom === null ? '' : `, a part of batch ${splitFrom}`
  const facts: [string, string][] = [['Batch', `${id}, ${countOf(size, 'event')}${part}`]]
  if (claimedAt !== null) facts.push(['Claimed', instant(claimedAt, now)])
  if (settledAt !== null) facts.push(['Settled', instant(settledAt, now)])
  else
    facts.push(
      isLeased ? ['Lease ends', instant(leasedUntil, now)] : ['Free since', instant(leasedUntil, now)],
    )
  facts.push(['Window', `${fromSnapshot} to ${toSnapshot}`])
  return facts
}

/** A handler that takes the event, or once took it, and what it has left to do. */
export interface HandlerState {
  readonly name: string
  readonly state: string
  /** When that is, or was. */
  readonly at: Date | null
}

/** Each handler that takes the event, or once took it. */
export function handlerStates(history: EventHistory, now: Date): HandlerState[] {
  const { handlers, deliveries, dead, failures } = history
  const names = new Set([
    ...(handlers ?? []).map(({ name }) => name),
    ...deliveries.map(({ handler }) => handler ?? ''),
    ...dead.map(({ handler }) => handler),
    ...failures.map(({ handler }) => handler),
  ])
  const isGone = (name: string): boolean =>
    handlers !== null && !handlers.some((handler) => handler.name === name)
  return [...names].sort().map((name) => {
    const { state, at } = stateOf(history, name, now)
    if (name === '') return { name: '(all)', state, at }
    return { name: `${name}${isGone(name) ? ' (unregistered)' : ''}`, state, at }
  })
}

function stateOf(history: EventHistory, name: string, now: Date): Omit<HandlerState, 'name'> {
  const { state, deliveries, dead, failures, batches } = history
  const delivery = deliveries.find(({ handler }) => (handler ?? '') === name)
  if (delivery) return { state: deliveryText(delivery, now), at: delivery.dueAt }
  const letter = dead.find(({ handler }) => handler === name)
  if (letter) return { state: `dead: ${reasons[letter.reason] ?? letter.reason}`, at: letter.diedAt }
  if (state === 'unclaimed' || state === 'open') return { state: 'waits for a poll', at: null }
  if (deliveries.some(({ handler }) => handler === null)) return { state: 'waits with the event', at: null }
  const batch = batches.at(-1)
  if (batch?.isLeased) return { state: 'being handled', at: null }
  const isLate = failures.some(({ handler }) => handler === name)
  return { state: isLate ? 'succeeded at last' : 'done', at: isLate ? null : (batch?.settledAt ?? null) }
}

function deliveryText({ reason, attempt, isLeased, dueAt, alone }: DeliveryRecord, now: Date): string {
  const number = attempt === 0 ? '' : `attempt ${attempt + 1} `
  if (isLeased) return `${number}being handled${alone ? ' alone' : ''}, lease ends ${relative(dueAt, now)}`
  const because = reason === 'retry' ? '' : `: ${waitsBecause[reason] ?? reason}`
  return `${number}due ${relative(dueAt, now)}${because}`
}

function waitingText(deliveries: ReadonlyArray<DeliveryRecord>, now: Date): string {
  const next = deliveries.reduce((first, one) => (one.dueAt < first.dueAt ? one : first))
  const who = next.handler === null ? '' : ` for ${next.handler}`
  const when = next.dueAt <= now ? 'due now' : `due ${relative(next.dueAt, now)}`
  return `waits${who}, ${when}: ${waitsBecause[next.reason] ?? next.reason}`
}
