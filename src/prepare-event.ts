import { InvalidEventError, type PayloadIssue } from './errors.ts'
import { checkEventName, type OutgoingEvent, type Validation, validatePayload } from './event.ts'
import type { CheckedOptions } from './publish-options.ts'
import { pathText, serialize } from './serialize.ts'

/** An event that passed every check, as it is sent. */
export interface PreparedEvent {
  readonly name: string
  /** JSON without a raw line feed. */
  readonly payload: string
  readonly bytes: number
  readonly options: CheckedOptions
}

/**
 * Checks an event before anything is sent. The schema sees the payload as JSON, which is what handlers will get, so
 * that an event that was published can also be handled. Answers at once unless the schema is asynchronous.
 * @throws InvalidEventError `INVALID_OPTION` (not an event), `INVALID_NAME`, `NOT_SERIALIZABLE`, `PAYLOAD_TOO_LARGE`,
 * `INVALID_PAYLOAD`
 */
export function prepareEvent(
  event: OutgoingEvent,
  options: CheckedOptions,
): PreparedEvent | Promise<PreparedEvent> {
  checkEventName(event.name)
  const payload = serialize(event.name, event.payload)
  const bytes = Buffer.byteLength(payload)
  if (bytes > options.maxPayloadBytes) {
    throw new InvalidEventError(
      'PAYLOAD_TOO_LARGE',
      event.name,
      `Expected the payload of ${event.name} to be at most ${options.maxPayloadBytes} bytes, got ${bytes}. Publish a reference to large data, or raise maxPayloadBytes.`,
    )
  }
  const prepared: PreparedEvent = { name: event.name, payload, bytes, options }
  if (event.definition.schema === undefined) return prepared
  const validation = validatePayload(event.definition, JSON.parse(payload))
  if (validation instanceof Promise) return validation.then((late) => accept(event, prepared, late))
  return accept(event, prepared, validation)
}

/** @throws InvalidEventError `INVALID_OPTION` when it was not made by calling a definition */
export function checkIsEvent(event: unknown): asserts event is OutgoingEvent {
  if (
    typeof event === 'object' &&
    event !== null &&
    typeof (event as Partial<OutgoingEvent>).definition === 'function'
  )
    return
  const definition = typeof event === 'function' ? (event as { eventName?: unknown }).eventName : undefined
  const got =
    typeof definition === 'string'
      ? `the definition of ${definition} itself`
      : event === null
        ? 'null'
        : typeof event
  throw new InvalidEventError(
    'INVALID_OPTION',
    typeof definition === 'string' ? definition : '',
    `Expected an event, made by calling what defineEvent returned with a payload, got ${got}.`,
  )
}

function accept(
  event: OutgoingEvent,
  prepared: PreparedEvent,
  validation: Validation<unknown>,
): PreparedEvent | Promise<PreparedEvent> {
  const { issues } = validation
  if (issues === undefined) return prepared
  const asGiven = validatePayload(event.definition, event.payload)
  if (asGiven instanceof Promise) return asGiven.then((late) => refuse(event.name, issues, late))
  return refuse(event.name, issues, asGiven)
}

function refuse(eventName: string, issues: ReadonlyArray<PayloadIssue>, asGiven: Validation<unknown>): never {
  const shown = issues.slice(0, 3).map((issue) => `${issue.message} at ${pathText(issue.path)}`)
  const rest = issues.length > 3 ? `; and ${issues.length - 3} more` : ''
  const hint =
    asGiven.issues === undefined
      ? ' It fits until it is turned into JSON, which is what handlers get: a Date becomes a string, NaN null, a Map {}.'
      : ''
  throw new InvalidEventError(
    'INVALID_PAYLOAD',
    eventName,
    `The payload of ${eventName} does not fit its schema: ${shown.join('; ')}${rest}.${hint}`,
    { issues },
  )
}
