import { type AnyTransaction, type Executor, executorOf, resultOf } from './db/executor.ts'
import { InvalidEventError } from './errors.ts'
import type { OutgoingEvent } from './event.ts'
import { checkIsEvent, type PreparedEvent, prepareEvent } from './prepare-event.ts'
import { type CheckedOptions, checkOptions, type PublishOptions } from './publish-options.ts'

/** An event of `publishMany` with options of its own, which come before those of the call. */
export interface EventWithOptions extends PublishOptions {
  readonly event: OutgoingEvent
}

/** Options for every event of a `publishMany`; a dedupe key belongs to one event. */
export type PublishManyOptions = Omit<PublishOptions, 'dedupeKey'>

type Item = OutgoingEvent | EventWithOptions

/**
 * Publishes any number of events in the caller's transaction: all of them or, when one is not valid, none. They are
 * taken from the iterable and sent a chunk at a time, in order, so that memory stays bounded; more than one chunk
 * needs a transaction (or a postgres.js, drizzle or kysely client that can begin one).
 *
 * Two transactions that publish the same dedupe keys in several chunks can deadlock; Postgres ends one of them.
 *
 * @param events events, or `{ event, dueAt, dedupeKey, … }` for one with options of its own
 * @param options for every event
 * @returns the ids in the order of the events
 * @throws as `publish`; the message of an InvalidEventError says which event
 */
export async function publishMany(
  tx: AnyTransaction,
  events: Iterable<Item>,
  options: PublishManyOptions = {},
): Promise<string[]> {
  const executor = executorOf(tx)
  checkIsIterable(events)
  const checked = checkOptions('every event', options)
  if ('dedupeKey' in options) {
    throw new InvalidEventError(
      'INVALID_OPTION',
      '',
      'Expected dedupeKey beside one event of publishMany, got it for all of them.',
    )
  }
  const chunks = chunksOf(events, options, checked)
  try {
    const first = await chunks.next()
    if (first.done) return []
    // everything of one chunk is checked before its statement; with a second, a savepoint makes it all or none
    const second = await chunks.next()
    if (second.done) return await append(executor, first.value)
    return await executor.atomically((inner) => appendAll(inner, [first.value, second.value], chunks))
  } finally {
    await chunks.return(undefined)
  }
}

function checkIsIterable(events: Iterable<Item> | null | undefined): void {
  if (typeof events?.[Symbol.iterator] === 'function') return
  throw new InvalidEventError(
    'INVALID_OPTION',
    '',
    `Expected the events of publishMany to be an array or another iterable, got ${events === null ? 'null' : typeof events}. One event alone is for publish.`,
  )
}

type Chunk = ReadonlyArray<PreparedEvent>

const maxChunkEvents = 2_000
const maxChunkBytes = 4 * 1024 * 1024

async function* chunksOf(
  events: Iterable<Item>,
  common: PublishManyOptions,
  checked: CheckedOptions,
): AsyncGenerator<Chunk, undefined> {
  let chunk: PreparedEvent[] = []
  let bytes = 0
  let index = 0
  for (const item of events) {
    const preparing = prepareItem(item, index, common, checked)
    // an await for each event would cost more than most of them
    const prepared = preparing instanceof Promise ? await preparing : preparing
    if (chunk.length === maxChunkEvents || (chunk.length > 0 && bytes + prepared.bytes > maxChunkBytes)) {
      yield chunk
      chunk = []
      bytes = 0
    }
    chunk.push(prepared)
    bytes += prepared.bytes
    index += 1
  }
  if (chunk.length > 0) yield chunk
}

function prepareItem(
  item: Item,
  index: number,
  common: PublishManyOptions,
  checked: CheckedOptions,
): PreparedEvent | Promise<PreparedEvent> {
  const refuse = (error: unknown): never => {
    if (!(error instanceof InvalidEventError)) throw error
    const { code, eventName, message, issues, cause } = error
    throw new InvalidEventError(code, eventName, `Event ${index} of publishMany: ${message}`, {
      issues,
      cause,
    })
  }
  try {
    const hasOptions = typeof item === 'object' && item !== null && 'event' in item
    const event = hasOptions ? item.event : item
    checkIsEvent(event)
    const options = hasOptions ? checkOptions(event.name, ownOptions(item, common)) : checked
    const prepared = prepareEvent(event, options)
    return prepared instanceof Promise ? prepared.catch(refuse) : prepared
  } catch (error) {
    return refuse(error)
  }
}

function ownOptions({ event: _, ...own }: EventWithOptions, common: PublishManyOptions): PublishOptions {
  return { ...common, ...own }
}

/** Sends each chunk while the next is being prepared. */
async function appendAll(
  executor: Executor,
  ready: ReadonlyArray<Chunk>,
  rest: AsyncGenerator<Chunk, undefined>,
): Promise<string[]> {
  const ids: string[] = []
  const waiting = [...ready]
  for (let chunk = waiting.shift(); chunk !== undefined; chunk = waiting.shift()) {
    const [appended, next] = await Promise.allSettled([append(executor, chunk), rest.next()])
    if (appended.status === 'rejected') throw appended.reason
    if (next.status === 'rejected') throw next.reason
    for (const id of appended.value) ids.push(id)
    if (!next.value.done) waiting.push(next.value.value)
  }
  return ids
}

async function append(executor: Executor, chunk: Chunk): Promise<string[]> {
  const payloads = chunk.map((event) => event.payload).join('\n')
  const headers = chunk.some((event) => event.options.headers !== null)
    ? chunk.map((event) => event.options.headers ?? '').join('\n')
    : null
  const isPlain = chunk.every(({ options }) => options.dueAt === null && options.dedupeKey === null)
  const ids = isPlain
    ? await executor.query(
        'select loopless.publish_many(names => $1::text, payloads => $2::text, headers => $3::text)',
        [chunk.map((event) => event.name).join('\n'), payloads, headers],
      )
    : await executor.query(
        'select loopless.publish_each(payloads => $1::text, headers => $2::text, options => $3::text::json)',
        [payloads, headers, JSON.stringify(chunk.map(optionsToSend))],
      )
  return resultOf(ids).split(',')
}

function optionsToSend({
  name,
  options: { dueAt, dedupeKey, dedupeSeconds },
}: PreparedEvent): Record<string, unknown> {
  return { name, dueAt, dedupeKey, dedupeSeconds }
}
