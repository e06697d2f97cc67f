import { type ConnectOptions, connect, type SignIn, type Sql } from '../../src/index.ts'
import { certificatesFor } from './certificates.ts'
import type { DatabaseSettings, SecretSettings, TokenSettings, UrlSettings } from './database-settings.ts'
import { type SecretReader, secretReader } from './secret.ts'
import { SettingError } from './setting.ts'
import { signToken } from './token.ts'

/** A client, and what it can do about a refused sign-in. */
export interface Database {
  readonly sql: Sql
  readonly settings: DatabaseSettings
  /** After a sign-in that was refused: true when another try may have another password. */
  renewSignIn(): boolean
}

/** Makes a client of the database that the settings name. Connects with the first query. @throws SettingError */
export function openDatabase(settings: DatabaseSettings, options: ConnectOptions = {}): Database {
  const all = { ...options, prepare: settings.prepare }
  if (settings.auth === 'url') {
    return { settings, sql: connect(settings.url, { ...all, ...tlsOf(settings) }), renewSignIn: () => false }
  }
  if (settings.auth === 'iam') {
    const sql = connect('postgres://by-token', { ...all, signIn: signInByToken(settings) })
    return { settings, sql, renewSignIn: () => false }
  }
  const secret = secretReader(settings.secretArn)
  const renewSignIn = (): boolean => {
    secret.forget()
    return true
  }
  const signIn = (): Promise<SignIn> => signInBySecret(settings, secret)
  return { settings, sql: connect('postgres://by-secret', { ...all, signIn }), renewSignIn }
}

/** The url decides; what it asks to verify is verified by the authorities that fit its host. */
function tlsOf({ url, caFile }: UrlSettings): ConnectOptions {
  const { hostname, searchParams } = new URL(url)
  const mode = searchParams.get('sslmode') ?? searchParams.get('ssl') ?? ''
  if (mode.startsWith('verify-')) {
    const certificates = certificatesFor(hostname, caFile)
    return certificates ? { certificates } : {}
  }
  if (caFile === null) return {}
  throw new SettingError(
    'DATABASE_CA_FILE is set, but DATABASE_URL does not ask to verify a certificate: add sslmode=verify-full to it.',
  )
}

function signInByToken(settings: TokenSettings): () => Promise<SignIn> {
  const { host, port, name: database, user, caFile } = settings
  const trusted = trust(host, caFile)
  return async () => ({ host, port, database, user, password: await signToken(settings), ...trusted })
}

async function signInBySecret(settings: SecretSettings, reader: SecretReader): Promise<SignIn> {
  const secret = await reader.read()
  const host = settings.host ?? secret.host
  const database = settings.name ?? secret.name
  if (host === null || database === null) {
    const [name, key] = host === null ? ['DATABASE_HOST', 'host'] : ['DATABASE_NAME', 'dbname']
    throw new SettingError(`Expected ${name} to be set, as the secret ${settings.secretArn} has no "${key}".`)
  }
  const port = settings.port ?? secret.port ?? 5432
  const { username: user, password } = secret
  return { host, port, database, user, password, ...trust(host, settings.caFile) }
}

function trust(host: string, caFile: string | null): Pick<SignIn, 'certificates'> {
  const certificates = certificatesFor(host, caFile)
  return certificates ? { certificates } : {}
}
