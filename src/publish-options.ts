import { InvalidEventError } from './errors.ts'

/** How one event is published. */
export interface PublishOptions {
  /**
   * The event waits as a delivery until then; with a time in the past it is due at once. Years 1–9999.
   * Default: it is handled from the log, at once.
   */
  readonly dueAt?: Date | undefined
  /**
   * A second publish of this kind of event with the same key writes nothing and returns the first id, also when both
   * run at the same time. 1–512 characters. Default: every publish is a new event.
   */
  readonly dedupeKey?: string | undefined
  /** How long the key is kept. More than 0 s, up to 100 years; default 604,800 s (7 days). */
  readonly dedupeSeconds?: number | undefined
  /** Go with the event to its handlers; for tracing and the like. Strings without NUL, 16 KiB of JSON at most. */
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** Longest payload, in bytes of JSON text. Default 1,048,576; the database has a limit of its own beside it. */
  readonly maxPayloadBytes?: number | undefined
}

/** Options as they are sent. */
export interface CheckedOptions {
  /** ISO 8601. */
  readonly dueAt: string | null
  readonly dedupeKey: string | null
  readonly dedupeSeconds: number
  /** JSON. */
  readonly headers: string | null
  readonly maxPayloadBytes: number
}

const defaults: CheckedOptions = {
  dueAt: null,
  dedupeKey: null,
  dedupeSeconds: 604_800,
  headers: null,
  maxPayloadBytes: 1_048_576,
}
const optionNames: ReadonlySet<string> = new Set(Object.keys(defaults))
const longestDedupeSeconds = 3_153_600_000
const maxHeaderBytes = 16_384
const firstInstant = Date.parse('0001-01-01T00:00:00Z')
const lastInstant = Date.parse('9999-12-31T23:59:59.999Z')

/** @throws InvalidEventError `INVALID_OPTION` that names the option, what it may be and what it got */
export function checkOptions(eventName: string, options: PublishOptions | undefined): CheckedOptions {
  if (options === undefined) return defaults
  const fail = (option: string, expected: string, got: string): never => {
    throw new InvalidEventError(
      'INVALID_OPTION',
      eventName,
      `Expected ${option} of ${eventName} to be ${expected}, got ${got}.`,
    )
  }
  if (typeof options !== 'object' || options === null) fail('the options', 'an object', show(options))
  const unknown = Object.keys(options).find((key) => !optionNames.has(key))
  if (unknown !== undefined) fail('the options', `some of ${[...optionNames].join(', ')}`, show(unknown))
  const { dueAt, dedupeKey, dedupeSeconds, headers, maxPayloadBytes } = options
  return {
    dueAt: dueAt === undefined ? null : checkDueAt(dueAt, fail),
    dedupeKey: dedupeKey === undefined ? null : checkDedupeKey(dedupeKey, fail),
    dedupeSeconds: checkDedupeSeconds(dedupeSeconds ?? defaults.dedupeSeconds, fail),
    headers: headers === undefined ? null : checkHeaders(headers, fail),
    maxPayloadBytes: checkMaxPayloadBytes(maxPayloadBytes ?? defaults.maxPayloadBytes, fail),
  }
}

/** Whether an event can wait until then: valid, and in the years that ISO 8601 writes with four digits. */
export function isDueTime(time: Date): boolean {
  return time.getTime() >= firstInstant && time.getTime() <= lastInstant
}

type Fail = (option: string, expected: string, got: string) => never

function checkDueAt(dueAt: Date, fail: Fail): string {
  if (!(dueAt instanceof Date)) return fail('dueAt', 'a valid Date', show(dueAt))
  if (isDueTime(dueAt)) return dueAt.toISOString()
  return fail(
    'dueAt',
    'a valid Date in the years 1–9999',
    Number.isNaN(dueAt.getTime()) ? 'an invalid Date' : dueAt.toISOString(),
  )
}

function checkDedupeKey(key: string, fail: Fail): string {
  const expected = '1–512 characters'
  if (typeof key !== 'string') return fail('dedupeKey', expected, show(key))
  if (key.length < 1 || key.length > 512) return fail('dedupeKey', expected, `${key.length}`)
  return checkText('dedupeKey', key, fail)
}

function checkDedupeSeconds(seconds: number, fail: Fail): number {
  if (typeof seconds === 'number' && seconds > 0 && seconds <= longestDedupeSeconds) return seconds
  return fail('dedupeSeconds', `more than 0 and at most ${longestDedupeSeconds}`, show(seconds))
}

function checkMaxPayloadBytes(bytes: number, fail: Fail): number {
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes
  return fail('maxPayloadBytes', 'a whole number above 0', show(bytes))
}

function checkHeaders(headers: Readonly<Record<string, string>>, fail: Fail): string | null {
  if (typeof headers !== 'object' || headers === null)
    return fail('headers', 'an object of strings', show(headers))
  if (Symbol.iterator in headers) {
    return fail(
      'headers',
      'an object of strings',
      'something iterable (Object.fromEntries makes an object of it)',
    )
  }
  const entries = Object.entries(headers)
  if (entries.length === 0) return null
  for (const [name, value] of entries) {
    if (typeof value !== 'string') return fail(`header ${JSON.stringify(name)}`, 'a string', show(value))
    checkText(`the name of header ${JSON.stringify(name)}`, name, fail)
    checkText(`header ${JSON.stringify(name)}`, value, fail)
  }
  const text = JSON.stringify(Object.fromEntries(entries))
  const bytes = Buffer.byteLength(text)
  return bytes <= maxHeaderBytes
    ? text
    : fail('headers', `at most ${maxHeaderBytes} bytes of JSON`, `${bytes}`)
}

/** Postgres text has no NUL, and lone surrogates would arrive as another character. */
function checkText(option: string, text: string, fail: Fail): string {
  if (text.includes('\0')) return fail(option, 'without NUL characters', 'one')
  return text.isWellFormed() ? text : fail(option, 'well-formed Unicode', 'a lone surrogate')
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 100 ? `${value.slice(0, 100)}…` : value)
  if (value === null || typeof value !== 'object') return String(value)
  return Array.isArray(value) ? 'an array' : 'an object'
}
