import { setTimeout } from 'node:timers/promises'
import { type Command, Option } from 'commander'
import { connect, type Sql } from '../db/client.ts'
import { databaseError } from '../db/database-error.ts'
import { DatabaseError, InvalidOptionError } from '../errors.ts'
import { CommandError, explainError } from './explain-error.ts'
import type { Terminal } from './terminal.ts'

/** What every command takes. */
export interface CommonOptions {
  readonly databaseUrl?: string
  readonly json?: boolean
}

/** Adds what every command takes. */
export function addCommonOptions(command: Command): Command {
  return command
    .addOption(new Option('--database-url <url>', 'the database (default: DATABASE_URL)'))
    .addOption(new Option('--json', 'answer with one line of JSON'))
}

/** What a command works with: a connection, and the database's clock, read once. */
export interface Session {
  readonly sql: Sql
  readonly now: Date
}

/**
 * Connects, runs a command's work and disconnects.
 * @throws CommandError when no database is given, its url cannot be read, or it cannot be reached
 */
export async function withDatabase<Result>(
  terminal: Terminal,
  options: CommonOptions,
  work: (session: Session) => Promise<Result>,
): Promise<Result> {
  const connectTimeoutSeconds = Number(terminal.env['PGCONNECT_TIMEOUT']) || 10
  const { url, sql } = open(terminal, options, connectTimeoutSeconds)
  let endSeconds = 0
  try {
    const now = await readClock(sql, connectTimeoutSeconds)
    endSeconds = 5
    return await work({ sql, now })
  } catch (error) {
    if (error instanceof CommandError) throw error
    throw new CommandError(explainError(isFromDriver(error) ? databaseError(error) : error, url), 1, {
      cause: error,
    })
  } finally {
    await sql.end({ timeout: endSeconds })
  }
}

/** The first statement: the driver would try for ever to connect to something that accepts and closes. */
async function readClock(sql: Sql, seconds: number): Promise<Date> {
  const timer = new AbortController()
  const tooLate = setTimeout(seconds * 1000, null, { signal: timer.signal })
  const clock = sql<{ now: Date }[]>`select clock_timestamp() as now`.then(([row]) => row?.now ?? null)
  // whichever of the two loses has nothing more to say
  tooLate.catch(() => {})
  clock.catch(() => {})
  const now = await Promise.race([clock, tooLate]).finally(() => timer.abort())
  if (now !== null) return now
  throw new DatabaseError(`No answer within ${seconds} s.`, 'CONNECT_TIMEOUT')
}

function open(
  { env }: Terminal,
  { databaseUrl }: CommonOptions,
  connectTimeoutSeconds: number,
): { url: string; sql: Sql } {
  const url = databaseUrl ?? env['DATABASE_URL']
  if (!url) {
    throw new CommandError(
      'No database given: set DATABASE_URL or pass --database-url (npm start has postgres://postgres@127.0.0.1:15432/postgres).',
      2,
    )
  }
  try {
    return { url, sql: connect(url, { applicationName: 'loopless-cli', connectTimeoutSeconds }) }
  } catch (error) {
    if (!(error instanceof InvalidOptionError)) throw error
    const source = databaseUrl === undefined ? 'DATABASE_URL' : '--database-url'
    throw new CommandError(`${source}: ${error.message}`, 2, { cause: error })
  }
}

function isFromDriver(error: unknown): boolean {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
}
