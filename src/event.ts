import type { StandardSchemaV1 } from '@standard-schema/spec'
import { InvalidEventError, type PayloadIssue } from './errors.ts'

/**
 * A kind of event, made once by `defineEvent`: call it with a payload to get an event to publish, and give it to
 * `defineHandler` to receive such events. `Input` is what is published and stored, as JSON; `Output` is what
 * handlers get, and differs from it only when the schema transforms.
 */
export interface EventDefinition<Name extends string = string, Input = never, Output = unknown> {
  (payload: Input): OutgoingEvent<Name>
  readonly eventName: Name
  /** Any Standard Schema; undefined: the payload is not checked at run time. */
  readonly schema: StandardSchemaV1<unknown, Output> | undefined
}

/** An event that is ready for `publish`; nothing is checked before that. */
export interface OutgoingEvent<Name extends string = string> {
  readonly name: Name
  readonly payload: unknown
  readonly definition: EventDefinition<Name>
}

/** An event as a handler gets it. */
export interface ReceivedEvent<Name extends string = string, Payload = unknown> {
  /** A decimal string: a bigint in the database. */
  readonly id: string
  readonly name: Name
  /** What the event's schema made of the stored JSON; the stored JSON itself when it has no schema. */
  readonly payload: Payload
  /** Start of the transaction that published it. */
  readonly publishedAt: Date
  /** As given to `publish`; empty when none were. */
  readonly headers: Readonly<Record<string, string>>
}

/** What publishers of a kind of event pass in: `InputOf<typeof orderPlaced>`. */
export type InputOf<Definition extends EventDefinition> =
  Definition extends EventDefinition<string, infer Input, unknown> ? Input : never

/** What handlers of a kind of event get: `OutputOf<typeof orderPlaced>`. */
export type OutputOf<Definition extends EventDefinition> =
  Definition extends EventDefinition<string, never, infer Output> ? Output : never

/**
 * Defines a kind of event, the start of every flow.
 *
 *     const orderPlaced = defineEvent('order.placed', z.object({ orderId: z.number() }))
 *     const orderShipped = defineEvent<{ orderId: number }>('order.shipped')   // typed, not checked at run time
 *
 * @param name 1–200 characters: dotted lower-case words of letters, digits, `_` and `-`
 * @throws InvalidEventError `INVALID_NAME`, `INVALID_OPTION` (not a Standard Schema)
 */
export function defineEvent<Payload = unknown, const Name extends string = string>(
  name: Name,
): EventDefinition<Name, Payload, Payload>
export function defineEvent<const Name extends string, Schema extends StandardSchemaV1>(
  name: Name,
  schema: Schema,
): EventDefinition<Name, StandardSchemaV1.InferInput<Schema>, StandardSchemaV1.InferOutput<Schema>>
export function defineEvent<Name extends string>(
  name: Name,
  schema?: StandardSchemaV1,
): EventDefinition<Name, unknown, unknown> {
  checkEventName(name)
  if (schema !== undefined && !isStandardSchema(schema)) {
    throw new InvalidEventError(
      'INVALID_OPTION',
      name,
      `Expected the schema of ${name} to be a Standard Schema (zod, valibot, arktype …), got ${describe(schema)}.`,
    )
  }
  const definition: EventDefinition<Name, unknown, unknown> = Object.assign(
    (payload: unknown): OutgoingEvent<Name> => ({ name, payload, definition }),
    { eventName: name, schema },
  )
  return definition
}

const namePattern = /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/

/** True for 1–200 characters that are dotted lower-case words of letters, digits, `_` and `-`. */
export function isEventName(name: unknown): name is string {
  return typeof name === 'string' && name.length <= 200 && namePattern.test(name)
}

/** @throws InvalidEventError `INVALID_NAME` when `isEventName` says no */
export function checkEventName(name: unknown): void {
  if (isEventName(name)) return
  const got = typeof name === 'string' && name.length > 200 ? `${name.length} characters` : describe(name)
  throw new InvalidEventError(
    'INVALID_NAME',
    typeof name === 'string' ? name : String(name),
    `Expected an event name of 1–200 characters, dotted lower-case words (letters, digits, _, -), got ${got}.`,
  )
}

/** What a schema said of a payload: its output, or why it does not fit. */
export type Validation<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: ReadonlyArray<PayloadIssue> }

/**
 * Checks a payload against the event's schema, at publishing and again before handling. Answers at once unless
 * the schema is asynchronous, so that the common case costs no turn of the event loop.
 * What the schema itself throws is passed on.
 */
export function validatePayload<Output>(
  definition: EventDefinition<string, never, Output>,
  value: unknown,
): Validation<Output> | Promise<Validation<Output>> {
  const { schema } = definition
  // without a schema nothing tells Output from what was published: the types are the publisher's promise
  if (schema === undefined) return { value: value as Output }
  const result = schema['~standard'].validate(value)
  return isPromise(result) ? Promise.resolve(result).then(withPlainPaths) : withPlainPaths(result)
}

function withPlainPaths<Output>(result: StandardSchemaV1.Result<Output>): Validation<Output> {
  if (result.issues === undefined) return result
  return {
    issues: result.issues.map((issue) => ({
      message: issue.message,
      path: (issue.path ?? []).map((segment) => (typeof segment === 'object' ? segment.key : segment)),
    })),
  }
}

function isPromise<Value extends object>(value: Value | Promise<Value>): value is Promise<Value> {
  return 'then' in value && typeof value.then === 'function'
}

function isStandardSchema(schema: unknown): schema is StandardSchemaV1 {
  // arktype's schemas are functions
  if ((typeof schema !== 'object' && typeof schema !== 'function') || schema === null) return false
  const standard = (schema as Partial<StandardSchemaV1>)['~standard']
  return typeof standard?.validate === 'function'
}

function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (value === null || typeof value !== 'object') return String(value)
  return Array.isArray(value) ? 'an array' : 'an object'
}
