import { DatabaseError, InvalidOptionError } from '../errors.ts'
import { databaseError } from './database-error.ts'

/** A postgres.js `sql`, `tx` or reserved connection. */
interface PostgresJsClient {
  unsafe(text: string, values: (string | null)[], options: { prepare: boolean }): PromiseLike<unknown>
}

/** A pg Client, PoolClient or Pool, or anything else with this method, that resolves to `{ rows }` or to the rows. */
interface QueryClient {
  query(text: string, values: (string | null)[]): PromiseLike<unknown>
}

/** A kysely Transaction or Kysely on Postgres. */
interface KyselyClient {
  readonly isTransaction: boolean
  executeQuery(query: KyselyQuery): PromiseLike<unknown>
  transaction(): unknown
}

/** What kysely's `CompiledQuery.raw` makes. */
interface KyselyQuery {
  readonly sql: string
  readonly parameters: ReadonlyArray<unknown>
  readonly query: { readonly kind: 'RawNode'; readonly sqlFragments: string[]; readonly parameters: never[] }
  readonly queryId: { readonly queryId: string }
}

/** A drizzle transaction or database on Postgres. */
interface DrizzleClient {
  execute(query: { getSQL(): never }): PromiseLike<unknown>
  transaction(work: (tx: DrizzleClient) => Promise<unknown>): PromiseLike<unknown>
}

/**
 * The caller's transaction, whatever client it comes from. A client that is not in a transaction is taken too:
 * what is published is then committed at once.
 */
export type AnyTransaction = PostgresJsClient | QueryClient | KyselyClient | DrizzleClient

/** What Loopless asks of a client. Fails with the error classes of Loopless. */
export interface Executor {
  /** Runs one statement; resolves to the first value of its first row, undefined when it has none. */
  query(text: string, values: (string | null)[]): Promise<unknown>
  /**
   * Runs all or nothing: in a savepoint of the caller's transaction, or in a transaction of its own when the
   * client can begin one and is in none. What `work` throws comes back as it is.
   * @throws InvalidOptionError when there is no transaction and the client can not begin one
   */
  atomically<Result>(work: (executor: Executor) => Promise<Result>): Promise<Result>
}

/**
 * Tells what a client is by its methods, and speaks to it in its way. `eventName` is for its errors.
 * @throws InvalidOptionError for anything else
 */
export function executorOf(client: AnyTransaction, eventName = ''): Executor {
  if (hasMethod(client, 'unsafe')) return postgresJsExecutor(client as PostgresJsClient, eventName)
  if (hasMethod(client, 'executeQuery')) return kyselyExecutor(client as KyselyClient, eventName)
  if (hasMethod(client, 'execute') && hasMethod(client, 'transaction'))
    return drizzleExecutor(client as DrizzleClient, eventName)
  if (hasMethod(client, 'query')) return queryExecutor(client as QueryClient, eventName)
  throw new InvalidOptionError(
    `Expected tx to be a transaction of postgres.js, pg, drizzle or kysely, or an object with query(text, values), got ${client === null ? 'null' : typeof client}.`,
  )
}

function postgresJsExecutor(client: PostgresJsClient, eventName: string): Executor {
  // a prepared statement is one round trip, an unprepared one is two
  const query = firstValue(eventName, (text, values) => client.unsafe(text, values, { prepare: true }))
  // its own savepoint and begin: a failure that they did not see would fail the whole transaction in the end
  const scope = hasMethod(client, 'savepoint')
    ? client.savepoint
    : hasMethod(client, 'begin')
      ? client.begin
      : undefined
  return {
    query,
    atomically: (work) => (scope ? inScope((inner) => scope(inner), work) : inSavepoint(query, work)),
  }
}

function queryExecutor(client: QueryClient, eventName: string): Executor {
  const query = firstValue(eventName, (text, values) => client.query(text, values))
  return { query, atomically: (work) => inSavepoint(query, work) }
}

function kyselyExecutor(client: KyselyClient, eventName: string): Executor {
  const query = firstValue(eventName, (text, values) =>
    client.executeQuery({
      sql: text,
      parameters: values,
      query: { kind: 'RawNode', sqlFragments: [text], parameters: [] },
      queryId: { queryId: 'loopless' },
    }),
  )
  if (client.isTransaction) return { query, atomically: (work) => inSavepoint(query, work) }
  const begin = (inner: Work): PromiseLike<unknown> =>
    (client.transaction() as { execute: Scope }).execute(inner)
  return { query, atomically: (work) => inScope(begin, work) }
}

function drizzleExecutor(client: DrizzleClient, eventName: string): Executor {
  const query = firstValue(eventName, (text, values) => {
    // drizzle asks a query for its SQL, and that for its text and parameters
    const sql = { toQuery: () => ({ sql: text, params: values }) }
    return client.execute({ getSQL: () => sql as never })
  })
  return { query, atomically: (work) => inScope((inner) => client.transaction(inner), work) }
}

type Run = (text: string, values: (string | null)[]) => PromiseLike<unknown>
type Work = (client: AnyTransaction) => Promise<unknown>
type Scope = (work: Work) => PromiseLike<unknown>

function firstValue(eventName: string, run: Run): Executor['query'] {
  return async (text, values) => {
    try {
      const result = await run(text, values)
      const rows = Array.isArray(result) ? result : (result as { rows?: unknown } | undefined)?.rows
      const row: unknown = Array.isArray(rows) ? rows[0] : undefined
      // by place, not by name: clients can be told to rename columns
      return typeof row === 'object' && row !== null ? Object.values(row)[0] : undefined
    } catch (error) {
      throw databaseError(serverErrorIn(error), eventName)
    }
  }
}

async function inScope<Result>(open: Scope, work: (executor: Executor) => Promise<Result>): Promise<Result> {
  let done: { result: Result } | { error: unknown } | undefined
  try {
    await open(async (client) => {
      try {
        done = { result: await work(executorOf(client)) }
      } catch (error) {
        done = { error }
        throw error
      }
    })
  } catch (error) {
    throw done && 'error' in done ? done.error : databaseError(serverErrorIn(error))
  }
  if (done && 'result' in done) return done.result
  throw new DatabaseError('The database client did not run the transaction that it was given.', null)
}

async function inSavepoint<Result>(
  query: Executor['query'],
  work: (executor: Executor) => Promise<Result>,
): Promise<Result> {
  await query('savepoint loopless', []).catch((error: unknown) => {
    if (error instanceof DatabaseError && error.sqlState === '25P01') throw noTransaction(error)
    throw error
  })
  try {
    const result = await work({ query, atomically: (inner) => inSavepoint(query, inner) })
    await query('release savepoint loopless', [])
    return result
  } catch (error) {
    // when this fails too, the first error tells more
    await query('rollback to savepoint loopless', [])
      .then(() => query('release savepoint loopless', []))
      .catch(() => {})
    throw error
  }
}

function noTransaction(cause: DatabaseError): InvalidOptionError {
  return new InvalidOptionError(
    'Expected tx to be in a transaction: so many events take several statements, and either all or none may be written. Nothing was written. Begin a transaction on one connection and pass that.',
    { cause },
  )
}

/** drizzle wraps what the driver threw, with the whole statement and its parameters as the message. */
function serverErrorIn(error: unknown): unknown {
  if (!(error instanceof Error) || 'code' in error || !(error.cause instanceof Error)) return error
  return serverErrorIn(error.cause)
}

function hasMethod<Key extends string>(
  value: unknown,
  key: Key,
): value is { [key in Key]: (...args: unknown[]) => PromiseLike<unknown> } {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return false
  return typeof (value as { [key in Key]?: unknown })[key] === 'function'
}

/** What `query` resolved to, as text. @throws DatabaseError when the client gave back no row */
export function resultOf(value: unknown): string {
  if (typeof value === 'string') return value
  throw new DatabaseError(
    'Expected the query method of tx to resolve to { rows } or to the rows; it gave no row. The statement may have been carried out.',
    null,
  )
}
