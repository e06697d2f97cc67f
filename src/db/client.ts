import postgres from 'postgres'
import { InvalidOptionError } from '../errors.ts'
import { type SignIn, signInOptions } from './sign-in.ts'

/** A postgres.js client, as `connect` makes it. */
export type Sql = postgres.Sql

/** A postgres.js transaction, as transactional handlers get it. */
export type TransactionSql = postgres.TransactionSql

export interface ConnectOptions {
  /** Connections at most. Default 1: a poller never needs more. */
  readonly max?: number
  /** Shown in pg_stat_activity. Default `loopless`. */
  readonly applicationName?: string
  /** Ends a statement of ours that takes longer. Default 60,000 ms; 0: never. */
  readonly statementTimeoutMs?: number
  /** Ends a session that sits in a transaction, as a frozen or killed Lambda does. Default 30,000 ms; 0: never. */
  readonly idleInTransactionTimeoutMs?: number
  /** For a new connection. Default 10 s. */
  readonly connectTimeoutSeconds?: number
  /**
   * False behind a pooler that gives each transaction another session (RDS Proxy, PgBouncer): statements are not
   * prepared, and the time limits above are not sent, which a pooler refuses: set them for the role. Default true,
   * unless the url ends in `?prepare=false`.
   */
  readonly prepare?: boolean
  /**
   * Asked for each new connection: where to connect and as whom, in place of what the url says. For passwords that
   * change while the client lives. Such a connection is always TLS, and the certificate is verified.
   */
  readonly signIn?: () => Promise<SignIn>
  /** TLS with a certificate that is verified, for the host of the url: by these authorities, as PEM. */
  readonly certificates?: string | ReadonlyArray<string>
}

/**
 * Opens a client for a poller: settings that keep a frozen or killed process from holding locks for long.
 * Connects with the first query.
 * @param url `postgres://user:password@host:5432/name`, as in `process.env.DATABASE_URL`
 * @throws InvalidOptionError for no url or one that cannot be read, whose message does not repeat it; for time limits
 * beside `prepare: false`
 */
export function connect(url: string | undefined, options: ConnectOptions = {}): Sql {
  checkUrl(url)
  try {
    return open(url, options)
  } catch (error) {
    throw urlError(error) ?? error
  }
}

const like = 'like postgres://user:password@host:5432/name'

/** The rest is checked by who reads it, the driver: it also takes sockets, and several hosts. */
function checkUrl(url: string | undefined): asserts url is string {
  if (typeof url === 'string' && /^postgres(ql)?:\/\//i.test(url)) return
  if (url) throw new InvalidOptionError(`Expected the url of the database to be ${like}, got something else.`)
  throw new InvalidOptionError(
    `Expected the url of the database, ${like}, got none: is the environment variable set that it comes from?`,
  )
}

/** What the driver threw, if it was about the url. Without a cause: that holds the url, and so the password. */
function urlError(error: unknown): InvalidOptionError | null {
  if (error instanceof URIError) {
    return new InvalidOptionError(
      'The url of the database has a "%" that is not followed by the two digits of a character: write a "%" in a password as %25.',
    )
  }
  if (!(error instanceof TypeError && 'code' in error && error.code === 'ERR_INVALID_URL')) return null
  return new InvalidOptionError(
    `Expected the url of the database to be ${like}, got one that cannot be read: write "/" in a password as %2F, "?" as %3F, "#" as %23, "@" as %40.`,
  )
}

function open(url: string, options: ConnectOptions): Sql {
  const connectTimeoutSeconds = options.connectTimeoutSeconds ?? 10
  const prepare = options.prepare !== false && !/[?&]prepare=false(?:&|$)/.test(url)
  return postgres(url, {
    ...(options.certificates && {
      // the driver does not say what host an address is verified for
      ssl: { host: new URL(url).hostname, ca: [options.certificates].flat() },
    }),
    ...(options.signIn && signInOptions(options.signIn, connectTimeoutSeconds)),
    max: options.max ?? 1,
    prepare,
    connect_timeout: connectTimeoutSeconds,
    // the driver's own goes up to 20 s, past the end of a poll that waits for it
    backoff: (attempt) => (0.5 + Math.random() / 2) * Math.min(3 ** attempt / 100, 1),
    keep_alive: 10,
    onnotice: () => {},
    connection: {
      application_name: options.applicationName ?? 'loopless',
      ...(prepare ? sessionLimits(options) : noLimits(options)),
    },
  })
}

function sessionLimits(options: ConnectOptions): Record<string, number> {
  return {
    statement_timeout: options.statementTimeoutMs ?? 60_000,
    idle_in_transaction_session_timeout: options.idleInTransactionTimeoutMs ?? 30_000,
    // the server's side of a dead peer: noticed after 10 + 3 × 5 s instead of two hours
    tcp_keepalives_idle: 10,
    tcp_keepalives_interval: 5,
    tcp_keepalives_count: 3,
    // the same while an answer is on its way, which keep-alives say nothing of: a quarter of an hour else
    tcp_user_timeout: 25_000,
  }
}

/** A session is not this client's alone then, and what it set would be another's. */
function noLimits(options: ConnectOptions): Record<string, number> {
  for (const name of ['statementTimeoutMs', 'idleInTransactionTimeoutMs'] as const) {
    if (!options[name]) continue
    throw new InvalidOptionError(
      `Expected ${name} to be left out with prepare: false, got ${options[name]}: a transaction pooler takes no settings of a session. Set it for the role, as docs/operations.md says.`,
    )
  }
  return {}
}

/**
 * Whether what is sent at once arrives in one session, in order. A driver that prepares nothing asks about each
 * statement before it sends it, and would send nothing ahead.
 */
export function isPipelined({ options }: Sql): boolean {
  return options.max === 1 && options.prepare
}
