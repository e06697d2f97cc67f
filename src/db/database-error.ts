import {
  DatabaseError,
  HandlerSetError,
  InvalidEventError,
  LeaseLostError,
  LooplessError,
  SchemaMissingError,
} from '../errors.ts'

interface ServerError {
  readonly code: string
  readonly message: string
  readonly hint?: string
}

function isServerError(error: unknown): error is ServerError & Error {
  return error instanceof Error && typeof (error as { code?: unknown }).code === 'string'
}

/** Turns what a driver threw into the error class of the decision that a caller makes; keeps it as the cause. */
export function databaseError(error: unknown, eventName = ''): LooplessError {
  if (error instanceof LooplessError) return error
  if (!isServerError(error))
    return new DatabaseError(`The database failed: ${String(error)}`, null, { cause: error })
  const message = error.hint ? `${error.message} ${error.hint}` : error.message
  switch (error.code) {
    case 'LL001':
      return new InvalidEventError('INVALID_NAME', eventName, message, { cause: error })
    case 'LL002':
      return new InvalidEventError('PAYLOAD_TOO_LARGE', eventName, message, { cause: error })
    case 'LL003':
      return new InvalidEventError('INVALID_PAYLOAD', eventName, message, { cause: error })
    case 'LL004':
      return new InvalidEventError('INVALID_OPTION', eventName, message, { cause: error })
    case 'LL010':
      return new LeaseLostError(message, { cause: error })
    case 'LL011':
      return new HandlerSetError(message, { cause: error })
    case '3F000': // invalid_schema_name
    case '42P01': // undefined_table
    case '42883': // undefined_function
      return new SchemaMissingError(
        `The database has no Loopless schema, or an older one: run "loopless migrate". (${error.message})`,
        { cause: error },
      )
    case '08P01': // protocol_violation, or PgBouncer, which refuses a setting of the session
      return new DatabaseError(
        `The database failed: ${message}. Behind a transaction pooler connect with prepare: false, or ?prepare=false in the url.`,
        error.code,
        { cause: error },
      )
    default:
      return new DatabaseError(`The database failed: ${message}`, error.code, { cause: error })
  }
}

const connectionCodes = new Set([
  'CONNECTION_CLOSED',
  'CONNECTION_ENDED',
  'CONNECTION_DESTROYED',
  'CONNECT_TIMEOUT',
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  '57P01',
  '57P02',
  '57P03',
  '08000',
  '08003',
  '08006',
  '25P03',
])

/** True when the connection, not the statement, failed: the statement may or may not have been carried out. */
export function isConnectionError(error: unknown): boolean {
  return isServerError(error) && connectionCodes.has(error.code)
}
