import { DatabaseError, LooplessError } from '../errors.ts'
import { oneLine } from './plain-text.ts'

/** Something the user gave or asked for cannot be; the message is all that is said. */
export class CommandError extends Error {
  override readonly name = 'CommandError'
  /** 2 for what a look at --help would have told, 1 for the rest. */
  readonly exitCode: 1 | 2

  constructor(message: string, exitCode: 1 | 2 = 1, options?: ErrorOptions) {
    super(message, options)
    this.exitCode = exitCode
  }
}

const unreachable: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'it closed the connection',
  EHOSTUNREACH: 'no route to the host',
  ENETUNREACH: 'no route to the network',
  ENOTFOUND: 'no such host',
  EAI_AGAIN: 'the name of the host cannot be resolved',
  ETIMEDOUT: 'no answer',
  CONNECT_TIMEOUT: 'no answer',
  CONNECTION_CLOSED: 'it closed the connection',
  CONNECTION_DESTROYED: 'the connection was closed',
  CONNECTION_ENDED: 'the connection was closed',
  ENOENT: 'no such socket',
  EACCES: 'the socket may not be used',
}

const tlsAdvice =
  '; if it does so always, it takes no TLS (ssl = on), which the url asks for by sslmode, and nothing was sent to it'

/** SQLSTATEs by which a server refuses a connection, not a statement. */
const refusals = /^(28...|3D000|53300|57P0[1-4])$/

/** One line for people: what failed and, where that is known, what to do. Never a stack, a password or a second line. */
export function explainError(error: unknown, databaseUrl?: string): string {
  const cause = error instanceof DatabaseError && error.cause !== undefined ? error.cause : error
  const code =
    cause instanceof DatabaseError ? cause.sqlState : String((cause as { code?: unknown } | null)?.code)
  if (code && unreachable[code] && !(error instanceof CommandError)) {
    const advice = code === 'ECONNRESET' && asksForTls(databaseUrl) ? tlsAdvice : ''
    return `Cannot reach the database${placeOf(databaseUrl)}: ${unreachable[code]}${advice}.`
  }
  const message = oneLine(cause instanceof Error ? cause.message : String(cause))
  if (code && refusals.test(code))
    return `The database${placeOf(databaseUrl)} refused the connection: ${message}.`
  if (error instanceof LooplessError) return oneLine(error.message)
  if (error instanceof CommandError) return message
  return message === '' ? `Failed without a message (${code || 'unknown error'}).` : message
}

function asksForTls(databaseUrl: string | undefined): boolean {
  if (databaseUrl === undefined || !URL.canParse(databaseUrl)) return false
  const { searchParams } = new URL(databaseUrl)
  const mode = searchParams.get('sslmode') ?? searchParams.get('ssl') ?? 'disable'
  return mode !== 'disable' && mode !== 'false'
}

function placeOf(databaseUrl: string | undefined): string {
  if (databaseUrl === undefined || !URL.canParse(databaseUrl)) return ''
  const { host, pathname } = new URL(databaseUrl)
  return ` at ${oneLine(host || 'localhost')}${oneLine(pathname)}`
}
