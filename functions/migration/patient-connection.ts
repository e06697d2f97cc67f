import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../src/index.ts'
import { codeOf, connectionAdvice, isRefusedSignIn } from '../edge/connection-advice.ts'
import { type Database, openDatabase } from '../edge/database.ts'
import { readDatabaseSettings } from '../edge/database-settings.ts'
import { isDeniedSecret } from '../edge/fetch-secret.ts'
import type { Environment } from '../edge/setting.ts'

/** How long a database is waited for that does not answer; one at zero capacity takes 15 s, or 30 after a day. */
const patienceMs = 180_000
/** How long a token or a secret is refused that the function's role may use only now: IAM takes its time to let all know. */
const rolePatienceMs = 20_000
const pauseMs = 1_000

/** What a database that is starting or resuming answers with, or something in front of it. */
const startingCodes = new Set([
  'CONNECT_TIMEOUT',
  'CONNECTION_CLOSED',
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  '53300', // too_many_connections
  '57P03', // cannot_connect_now
])

/**
 * Runs work with a connection of its own and closes it. A database that is resuming is waited for. When the signal ends
 * the work, the connection is closed, and the server rolls back what was not committed, within a second.
 * @throws what the work throws; a connection that failed says what to do
 */
export async function withDatabase<Result>(
  environment: Environment,
  signal: AbortSignal,
  work: (sql: Sql) => Promise<Result>,
): Promise<Result> {
  const database = openDatabase(readDatabaseSettings(environment), {
    applicationName: environment['AWS_LAMBDA_FUNCTION_NAME'] ?? 'loopless-migrate',
    connectTimeoutSeconds: 30,
    statementTimeoutMs: 0,
  })
  const { sql } = database
  let phase = 'connecting'
  const done = (async () => {
    await connectPatiently(database, signal)
    phase = 'upgrading'
    return work(sql)
  })()
  try {
    return await Promise.race([done, rejectedBy(signal, () => phase)])
  } catch (error) {
    throw advised(error, database)
  } finally {
    done.catch(() => {}) // the connection under it is closed; why is said already
    await sql.end({ timeout: signal.aborted ? 0 : 1 })
  }
}

async function connectPatiently(database: Database, signal: AbortSignal): Promise<void> {
  const beganMs = performance.now()
  for (;;) {
    try {
      // a server that waits for a lock would not notice that its client has gone, and keep others waiting for it
      await database.sql`select set_config('client_connection_check_interval', '1000', false)`
      return
    } catch (error) {
      if (performance.now() - beganMs > patienceFor(error, database)) throw error
      const message = `No connection yet: ${(error as Error).message}`
      console.warn(JSON.stringify({ level: 'warn', message }))
    }
    await sleep(pauseMs, null, { signal })
  }
}

function patienceFor(error: unknown, { settings }: Database): number {
  if (isDeniedSecret(error)) return rolePatienceMs
  if (isRefusedSignIn(error)) return settings.auth === 'iam' ? rolePatienceMs : 0
  return startingCodes.has(codeOf(error) ?? '') ? patienceMs : 0
}

function rejectedBy(signal: AbortSignal, phase: () => string): Promise<never> {
  return new Promise((_, reject) => {
    const end = (): void =>
      reject(
        new Error(
          phase() === 'connecting'
            ? 'The database could not be reached before the time of this function ended.'
            : 'The time of this function ended before the work was done; what was not committed is rolled back. A migration may wait for a transaction that is open for long: end that, and deploy again.',
        ),
      )
    if (signal.aborted) end()
    signal.addEventListener('abort', end, { once: true })
  })
}

function advised(error: unknown, { settings }: Database): unknown {
  const advice = connectionAdvice(error, settings)
  if (advice !== null && error instanceof Error) error.message = `${error.message}. ${advice}`
  return error
}
