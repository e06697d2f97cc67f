import type { TransactionSql } from './db/client.ts'
import { InvalidOptionError } from './errors.ts'
import type { EventDefinition, OutputOf, ReceivedEvent } from './event.ts'

/** When a handler is tried, and how long it may take. */
export interface HandlerOptions {
  /** Unique name; deliveries refer to it. Default: the key in `defineHandlers`, the file name in a build. */
  readonly name?: string
  /** Runs before an event goes to the dead letters. 1–65,535, default 3. */
  readonly maxAttempts?: number
  /** Delay after the first failure; doubled after each further one. 0–86,400 s, default 15. */
  readonly baseDelaySeconds?: number
  /** Longest delay. 0–2,592,000 s (30 days), default 3,600. */
  readonly maxDelaySeconds?: number
  /** Share of the delay that is random, ± : 0–1, default 0.2; 0 gives exactly base · 2^(attempt−1). */
  readonly jitter?: number
  /**
   * A run that is not done by then has failed, and its signal is aborted. More than 0, up to 900 s, default 30.
   * One that blocks the event loop cannot be interrupted: it counts by how it ends.
   */
  readonly timeoutSeconds?: number
  /** Runs of this handler at once in one poller. 1–1,000; default: the poll's limit. */
  readonly concurrency?: number
  /** Run inside the transaction that settles the event: effects made with `context.tx` happen exactly once. */
  readonly transactional?: boolean
  /** Get all events of a poll in one call, as an array. */
  readonly batch?: boolean
}

/** Writes one line about the event being handled. */
export interface HandlerLog {
  info(message: string, fields?: Readonly<Record<string, unknown>>): void
  warn(message: string, fields?: Readonly<Record<string, unknown>>): void
  error(message: string, fields?: Readonly<Record<string, unknown>>): void
}

/** What every kind of handler gets. */
export interface BaseContext {
  /** The poll's clock; the same for everything one poll does. */
  readonly now: Date
  /** Aborted when the handler ran past its time-out or its poll must end. */
  readonly signal: AbortSignal
  readonly log: HandlerLog
}

/** For a handler of one event. */
export interface HandlerContext extends BaseContext {
  /** 1 at the first run. */
  readonly attempt: number
  /** The same for every run of this handler for this event: event id and handler name. */
  readonly idempotencyKey: string
  /** As given by the publisher; empty when there were none. */
  readonly headers: Readonly<Record<string, string>>
}

/** Adds the transaction that settles the event. Use `tx` for every statement, and only before the handler returns. */
export interface WithTransaction {
  readonly tx: TransactionSql
}

/** An element of what a batch handler gets. */
export interface BatchEvent<Payload> extends ReceivedEvent<string, Payload> {
  readonly attempt: number
  readonly idempotencyKey: string
}

/** What a batch handler may return: which events failed. The others succeeded. */
export interface BatchResult {
  readonly failed: ReadonlyArray<{ readonly id: string; readonly error: unknown }>
}

type ContextOf<Options extends HandlerOptions> = (Options extends { batch: true }
  ? BaseContext
  : HandlerContext) &
  (Options extends { transactional: true } ? WithTransaction : unknown)

// biome-ignore lint/suspicious/noConfusingVoidType: a handler that returns nothing is the common one
type BatchAnswer = BatchResult | void

// Options of which it is not known whether they say `batch`: the function must be ready for both.
type HandlerFunction<Payload, Options extends HandlerOptions> = 'batch' extends keyof Options
  ? boolean extends Options['batch']
    ? (
        input: ReceivedEvent<string, Payload> | ReadonlyArray<BatchEvent<Payload>>,
        context: BaseContext & (Options extends { transactional: true } ? WithTransaction : unknown),
      ) => unknown
    : KnownHandlerFunction<Payload, Options>
  : KnownHandlerFunction<Payload, Options>

type KnownHandlerFunction<Payload, Options extends HandlerOptions> = Options extends { batch: true }
  ? (
      events: ReadonlyArray<BatchEvent<Payload>>,
      context: ContextOf<Options>,
    ) => BatchAnswer | Promise<BatchAnswer>
  : (event: ReceivedEvent<string, Payload>, context: ContextOf<Options>) => unknown

const brand = Symbol.for('loopless.handler')

/** A handler module's default export; made by `defineHandler`. */
export interface Handler {
  readonly [brand]: true
  readonly name: string | null
  /** An event name, or `order.*` or `*`. */
  readonly pattern: string
  /** Null for a wildcard handler. */
  readonly definition: EventDefinition | null
  readonly transactional: boolean
  readonly batch: boolean
  readonly maxAttempts: number
  readonly baseDelaySeconds: number
  readonly maxDelaySeconds: number
  readonly jitter: number
  readonly timeoutSeconds: number
  /** Infinity when only the poll's limit holds. */
  readonly concurrency: number
  readonly run: (input: never, context: never) => unknown
}

/**
 * Defines what happens when an event was published.
 * `on` is an event definition, or a wildcard: `order.*` takes every event below `order`, `*` every event.
 * Return: success. Throw: tried again after a delay; `throw retryAt(…)`, `retryAfter(…)` or `discard(…)` to say how to go on.
 * @throws InvalidOptionError for an option out of range
 */
export function defineHandler<Definition extends EventDefinition, const Options extends HandlerOptions>(
  on: Definition,
  options: Options,
  run: HandlerFunction<OutputOf<Definition>, Options>,
): Handler
export function defineHandler<const Options extends HandlerOptions>(
  on: string,
  options: Options,
  run: HandlerFunction<unknown, Options>,
): Handler
export function defineHandler(on: EventDefinition | string, options: HandlerOptions, run: unknown): Handler {
  const pattern = typeof on === 'string' ? on : on?.eventName
  const fail = (what: string, expected: string, got: unknown): never => {
    const who = options?.name ?? `for "${String(pattern)}"`
    throw new InvalidOptionError(`Handler ${who}: expected ${what} to be ${expected}, got ${show(got)}.`)
  }
  if (typeof pattern !== 'string' || !isPattern(pattern)) {
    fail('the event', 'an event definition, an event name, or a wildcard such as "order.*" or "*"', on)
  }
  if (typeof options !== 'object' || options === null) fail('the options', 'an object', options)
  if (typeof run !== 'function') fail('the last argument', 'a function', run)
  const unknown = Object.keys(options).find((key) => !optionNames.has(key))
  if (unknown !== undefined) fail('the options', `some of ${[...optionNames].join(', ')}`, unknown)
  if (options.name !== undefined && !isHandlerName(options.name)) {
    fail('name', '1–200 letters, digits, "_", "-" or "."', options.name)
  }
  const flag = (key: 'transactional' | 'batch'): boolean => {
    const value = options[key] ?? false
    return typeof value === 'boolean' ? value : fail(key, 'a boolean', value)
  }
  const number = (key: NumberOption): number => {
    const { fallback, least, most, whole, text } = numberOptions[key]
    const value = options[key]
    if (value === undefined) return fallback
    const fits =
      typeof value === 'number' && value >= least && value <= most && (!whole || Number.isInteger(value))
    return fits ? value : fail(key, text, value)
  }
  return {
    [brand]: true,
    name: options.name ?? null,
    pattern,
    definition: typeof on === 'string' ? null : on,
    transactional: flag('transactional'),
    batch: flag('batch'),
    maxAttempts: number('maxAttempts'),
    baseDelaySeconds: number('baseDelaySeconds'),
    maxDelaySeconds: number('maxDelaySeconds'),
    jitter: number('jitter'),
    timeoutSeconds: number('timeoutSeconds'),
    concurrency: number('concurrency'),
    run: run as Handler['run'],
  }
}

type NumberOption =
  | 'maxAttempts'
  | 'baseDelaySeconds'
  | 'maxDelaySeconds'
  | 'jitter'
  | 'timeoutSeconds'
  | 'concurrency'

const numberOptions: Record<
  NumberOption,
  { fallback: number; least: number; most: number; whole: boolean; text: string }
> = {
  maxAttempts: { fallback: 3, least: 1, most: 65_535, whole: true, text: 'a whole number of 1–65535' },
  baseDelaySeconds: { fallback: 15, least: 0, most: 86_400, whole: false, text: '0–86400 seconds' },
  maxDelaySeconds: { fallback: 3_600, least: 0, most: 2_592_000, whole: false, text: '0–2592000 seconds' },
  jitter: { fallback: 0.2, least: 0, most: 1, whole: false, text: 'a number of 0–1' },
  timeoutSeconds: {
    fallback: 30,
    least: 0.001,
    most: 900,
    whole: false,
    text: 'more than 0 and at most 900 seconds',
  },
  concurrency: { fallback: Infinity, least: 1, most: 1_000, whole: true, text: 'a whole number of 1–1000' },
}

const optionNames: ReadonlySet<string> = new Set([
  'name',
  'transactional',
  'batch',
  ...Object.keys(numberOptions),
])

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  return typeof value === 'object' && value !== null ? 'an object' : String(value)
}

/** An event name, a name followed by `.*`, or `*`. */
export function isPattern(text: string): boolean {
  return text.length <= 200 && /^(\*|[a-z0-9_-]+(\.[a-z0-9_-]+)*(\.\*)?)$/.test(text)
}

/** Whether an event of this name goes to handlers of this pattern. */
export function matches(pattern: string, eventName: string): boolean {
  if (pattern === '*') return true
  return pattern.endsWith('.*') ? eventName.startsWith(pattern.slice(0, -1)) : pattern === eventName
}

export function isHandlerName(value: unknown): value is string {
  return typeof value === 'string' && /^[A-Za-z0-9_.-]{1,200}$/.test(value)
}

/** True for what `defineHandler` made, also in another copy of this module. */
export function isHandler(value: unknown): value is Handler {
  return typeof value === 'object' && value !== null && (value as Partial<Handler>)[brand] === true
}
