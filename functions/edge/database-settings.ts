import { type Environment, SettingError, setting } from './setting.ts'

/** Which database, and how to sign in. */
export type DatabaseSettings = UrlSettings | TokenSettings | SecretSettings

interface CommonSettings {
  /** False behind RDS Proxy and PgBouncer, which keep no prepared statements. */
  readonly prepare: boolean
  /** The certificate authorities to trust, in place of those that the package knows; null: those. */
  readonly caFile: string | null
}

/** Everything is in the url, TLS included. */
export interface UrlSettings extends CommonSettings {
  readonly auth: 'url'
  readonly url: string
}

/** Signs in by a token of RDS IAM; always with TLS, verified. */
export interface TokenSettings extends CommonSettings {
  readonly auth: 'iam'
  readonly host: string
  readonly port: number
  readonly name: string
  readonly user: string
  /** Region of the database: in its host name, or this function's. */
  readonly region: string
}

/** Signs in by what a secret of Secrets Manager holds; always with TLS, verified. What is null is in the secret. */
export interface SecretSettings extends CommonSettings {
  readonly auth: 'secret'
  readonly secretArn: string
  readonly host: string | null
  readonly port: number | null
  readonly name: string | null
}

/**
 * Reads DATABASE_*. Without DATABASE_AUTH, a DATABASE_URL is used when there is one, and IAM otherwise. An empty value
 * is none, which is what a parameter of serverless.yml without a value becomes.
 * @throws SettingError
 */
export function readDatabaseSettings(environment: Environment): DatabaseSettings {
  const common = { prepare: readPrepare(environment), caFile: environment['DATABASE_CA_FILE'] || null }
  const auth = environment['DATABASE_AUTH'] || (environment['DATABASE_URL'] ? 'url' : 'iam')
  if (auth === 'url') return { auth, ...common, url: readUrl(environment) }
  if (auth === 'iam') return { auth, ...common, ...readToken(environment) }
  if (auth === 'secret') return { auth, ...common, ...readSecret(environment) }
  throw new SettingError(`Expected DATABASE_AUTH to be iam, secret or url, got "${auth}".`)
}

/** How long a connection is waited for: DATABASE_CONNECT_TIMEOUT_SECONDS, by default 10. @throws SettingError */
export function readConnectTimeoutSeconds(environment: Environment): number {
  return readWhole(
    'DATABASE_CONNECT_TIMEOUT_SECONDS',
    environment['DATABASE_CONNECT_TIMEOUT_SECONDS'] || '10',
    900,
  )
}

function readToken(environment: Environment): Omit<TokenSettings, keyof CommonSettings | 'auth'> {
  const needed = (name: string): string => {
    if (environment[name]) return environment[name]
    throw new SettingError(
      `Expected ${name} to be set, as DATABASE_AUTH is iam. Set DATABASE_HOST, DATABASE_NAME and DATABASE_USER; or DATABASE_AUTH=secret with DATABASE_SECRET_ARN; or DATABASE_URL.`,
    )
  }
  const host = readHost(needed('DATABASE_HOST'))
  return {
    host,
    port: readPort(environment['DATABASE_PORT'] || '5432'),
    name: needed('DATABASE_NAME'),
    user: needed('DATABASE_USER'),
    region: regionOf(host) ?? setting('AWS_REGION', environment),
  }
}

function readSecret(environment: Environment): Omit<SecretSettings, keyof CommonSettings | 'auth'> {
  const { DATABASE_SECRET_ARN: secretArn, DATABASE_HOST: host, DATABASE_PORT: port } = environment
  if (!secretArn) {
    throw new SettingError(
      'Expected DATABASE_SECRET_ARN to be set, as DATABASE_AUTH is secret: the ARN of a secret with "username" and "password".',
    )
  }
  return {
    secretArn,
    host: host ? readHost(host) : null,
    port: port ? readPort(port) : null,
    name: environment['DATABASE_NAME'] || null,
  }
}

/** The value stays unsaid: it may hold a password. */
function readUrl(environment: Environment): string {
  const url = environment['DATABASE_URL']
  if (url && /^postgres(ql)?:\/\//.test(url) && URL.canParse(url)) return url
  throw new SettingError(
    `Expected DATABASE_URL to be like postgres://user:password@host:5432/name?sslmode=verify-full${url ? '' : ', got none'}.`,
  )
}

function readHost(host: string): string {
  if (/^[a-z0-9.-]+$/i.test(host)) return host
  throw new SettingError(
    `Expected DATABASE_HOST to be a host name without a port or a scheme, got "${host}".`,
  )
}

function readPort(text: string): number {
  return readWhole('DATABASE_PORT', text, 65_535)
}

function readWhole(name: string, text: string, most: number): number {
  const number = Number(text)
  if (Number.isInteger(number) && number > 0 && number <= most) return number
  throw new SettingError(`Expected ${name} to be 1–${most}, got "${text}".`)
}

function readPrepare({ DATABASE_PREPARE: text }: Environment): boolean {
  if (!text || text === 'true') return true
  if (text === 'false') return false
  throw new SettingError(`Expected DATABASE_PREPARE to be true or false, got "${text}".`)
}

/** Region of an endpoint of RDS or RDS Proxy; null for another host. */
export function regionOf(host: string): string | null {
  return host.toLowerCase().match(/\.([a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?\.?$/)?.[1] ?? null
}
