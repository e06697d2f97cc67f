/** Where in a value a problem was found, as Standard Schema reports it. */
export interface PayloadIssue {
  readonly message: string
  /** Keys from the root of the payload, for example `['items', 0, 'sku']`; empty for the payload itself. */
  readonly path: ReadonlyArray<PropertyKey>
}

/** Base of every error that Loopless throws; `code` is stable, the message is for people. */
export abstract class LooplessError extends Error {
  abstract readonly code: string
}

/** An event cannot be published as given; nothing was written. */
export class InvalidEventError extends LooplessError {
  override readonly name = 'InvalidEventError'
  readonly code:
    | 'INVALID_NAME'
    | 'INVALID_PAYLOAD'
    | 'PAYLOAD_TOO_LARGE'
    | 'NOT_SERIALIZABLE'
    | 'INVALID_OPTION'
  readonly eventName: string
  /** What the event's schema said, for `INVALID_PAYLOAD`; empty for the other codes. */
  readonly issues: ReadonlyArray<PayloadIssue>

  constructor(
    code: InvalidEventError['code'],
    eventName: string,
    message: string,
    options: ErrorOptions & { issues?: ReadonlyArray<PayloadIssue> } = {},
  ) {
    super(message, options)
    this.code = code
    this.eventName = eventName
    this.issues = options.issues ?? []
  }
}

/** A handler, a handler set or a setting is not valid; thrown when the module loads or the call begins. */
export class InvalidOptionError extends LooplessError {
  override readonly name = 'InvalidOptionError'
  readonly code = 'INVALID_OPTION'
}

/** The database has no (or an older) Loopless schema: run `loopless migrate`. */
export class SchemaMissingError extends LooplessError {
  override readonly name = 'SchemaMissingError'
  readonly code = 'SCHEMA_MISSING'
}

/** `loopless migrate` must not go on: the database is newer than this code, or a migration was changed. */
export class MigrationError extends LooplessError {
  override readonly name = 'MigrationError'
  readonly code: 'DATABASE_NEWER' | 'MIGRATION_CHANGED' | 'MIGRATION_FAILED'

  constructor(code: MigrationError['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** `loopless roles create` lacks a right, or what it needs is not there; nothing was changed. */
export class RoleError extends LooplessError {
  override readonly name = 'RoleError'
  readonly code = 'ROLE_NOT_CREATED'
}

/** This poller's handlers are not the registered set, so it claimed nothing: stop it, or register the set. */
export class HandlerSetError extends LooplessError {
  override readonly name = 'HandlerSetError'
  readonly code = 'HANDLER_SET_NOT_REGISTERED'
}

/** The lease expired and another poll took the events; what this poll did in the transaction was rolled back. */
export class LeaseLostError extends LooplessError {
  override readonly name = 'LeaseLostError'
  readonly code = 'LEASE_LOST'
}

/** The database did not do what was asked: connection lost, time-out, failover. Nothing is lost; poll again. */
export class DatabaseError extends LooplessError {
  override readonly name = 'DatabaseError'
  readonly code = 'DATABASE_FAILED'
  /** SQLSTATE of the server, or the driver's code such as `CONNECTION_CLOSED`; null when there is none. */
  readonly sqlState: string | null

  constructor(message: string, sqlState: string | null, options?: ErrorOptions) {
    super(message, options)
    this.sqlState = sqlState
  }
}

/** A handler ran past its `timeoutSeconds`, or was still running when its poll had to end. */
export class TimeoutError extends LooplessError {
  override readonly name = 'TimeoutError'
  readonly code = 'HANDLER_TIMED_OUT'
}

/** The poller died while it ran this event alone; recorded as an attempt by the poll that found out. */
export class PollerDiedError extends LooplessError {
  override readonly name = 'PollerDiedError'
  readonly code = 'POLLER_DIED'
}

/** A handler used its `tx` after it had returned, failed or timed out, or tried to end the transaction itself. */
export class TransactionEndedError extends LooplessError {
  override readonly name = 'TransactionEndedError'
  readonly code = 'TRANSACTION_ENDED'
}

/** What a handler threw was not an Error; `message` shows the value. */
export class NonError extends LooplessError {
  override readonly name = 'NonError'
  readonly code = 'NON_ERROR_THROWN'
}

const retryBrand = Symbol.for('loopless.retry')
const discardBrand = Symbol.for('loopless.discard')

/** Thrown by a handler to be tried again at a time of its own; made by `retryAt` and `retryAfter`. */
export class RetryRequest extends LooplessError {
  readonly [retryBrand] = true
  override readonly name = 'RetryRequest'
  readonly code = 'RETRY_REQUESTED'
  /** Exactly one of the two is set. */
  readonly at: Date | null
  readonly afterSeconds: number | null

  /** @throws InvalidOptionError for a time that could not be kept */
  constructor(when: { at: Date } | { afterSeconds: number }, options?: ErrorOptions) {
    super('at' in when ? requestAt(when.at) : requestAfter(when.afterSeconds), options)
    this.at = 'at' in when ? when.at : null
    this.afterSeconds = 'at' in when ? null : when.afterSeconds
  }
}

/** The last instant whose ISO 8601 form has a year of four digits, which is all that Postgres reads. */
const latestMs = Date.UTC(9999, 11, 31)
const mostSeconds = 100 * 365 * 86_400

function requestAt(date: Date): string {
  const ms = date instanceof Date ? date.getTime() : Number.NaN
  if (ms >= 0 && ms <= latestMs) return `The handler asked to be tried again at ${date.toISOString()}.`
  throw new InvalidOptionError(
    `Expected retryAt to get a valid Date, of the years 1970–9999, got ${String(date)}.`,
  )
}

function requestAfter(seconds: number): string {
  if (typeof seconds === 'number' && seconds >= 0 && seconds <= mostSeconds)
    return `The handler asked to be tried again after ${seconds} s.`
  throw new InvalidOptionError(
    `Expected retryAfter to get 0–${mostSeconds} seconds (100 years), got ${String(seconds)}.`,
  )
}

/** Thrown by a handler that wants no further attempt; made by `discard`. */
export class DiscardRequest extends LooplessError {
  readonly [discardBrand] = true
  override readonly name = 'DiscardRequest'
  readonly code = 'DISCARDED'
}

/** True for what `retryAt` and `retryAfter` made, also in another copy of this module. */
export function isRetryRequest(error: unknown): error is RetryRequest {
  return error instanceof Error && (error as Partial<RetryRequest>)[retryBrand] === true
}

/** True for what `discard` made, also in another copy of this module. */
export function isDiscardRequest(error: unknown): error is DiscardRequest {
  return error instanceof Error && (error as Partial<DiscardRequest>)[discardBrand] === true
}

/**
 * `throw retryAt(date)` in a handler: this attempt failed, try again then.
 * @throws InvalidOptionError when `date` is not a valid Date of the years 1970–9999
 */
export function retryAt(date: Date, options?: ErrorOptions): RetryRequest {
  return new RetryRequest({ at: date }, options)
}

/**
 * `throw retryAfter(seconds)` in a handler: this attempt failed, try again that long after the poll's now.
 * @throws InvalidOptionError when `seconds` is not 0 to 100 years
 */
export function retryAfter(seconds: number, options?: ErrorOptions): RetryRequest {
  return new RetryRequest({ afterSeconds: seconds }, options)
}

/** `throw discard(reason)` in a handler: to the dead letters at once, whatever attempts are left. */
export function discard(reason: string, options?: ErrorOptions): DiscardRequest {
  return new DiscardRequest(reason, options)
}
