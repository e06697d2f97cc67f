import { DatabaseError } from '../../src/index.ts'
import type { DatabaseSettings } from './database-settings.ts'

/** The code of what a driver, the system or the server said; null when there is none. */
export function codeOf(error: unknown): string | null {
  if (error instanceof DatabaseError) return error.sqlState
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code
  return null
}

/** SQLSTATEs by which a server refuses who signs in. */
export function isRefusedSignIn(error: unknown): boolean {
  const code = codeOf(error)
  return code === '28P01' || code === '28000'
}

/**
 * What to do about a connection that failed, in a sentence or two for the person who deployed; null for an error that
 * is about something else.
 */
export function connectionAdvice(error: unknown, settings: DatabaseSettings): string | null {
  const code = codeOf(error)
  if (code === null) return null
  if (isRefusedSignIn(error)) return signInAdvice(settings, code)
  if (code === 'ECONNRESET' && settings.auth !== 'url') {
    return 'The server closed the connection: if it does so always, it takes no TLS (ssl = on), and nothing was sent to it.'
  }
  return networkAdvice[code] ?? certificateAdvice(code)
}

function signInAdvice(settings: DatabaseSettings, code: string): string {
  if (settings.auth === 'iam') {
    return (
      `Expected an IAM token to let "${settings.user}" in. Three things are needed: IAM database authentication is enabled on the database; ` +
      `the role "${settings.user}" exists there and has rds_iam (loopless roles create --iam); and the function's role allows rds-db:connect on ` +
      `arn:aws:rds-db:${settings.region}:ACCOUNT:dbuser:RESOURCE_ID/${settings.user}, with the id of the resource (cluster-… or db-…, prx-… for a proxy), not its name.`
    )
  }
  if (settings.auth === 'secret') {
    return `The secret ${settings.secretArn} was read again and is refused still: compare its username and password with the database's. A role that has rds_iam signs in by token only.`
  }
  if (code === '28000' && !new URL(settings.url).searchParams.has('sslmode')) {
    return 'The server may take encrypted connections only: add sslmode=verify-full to DATABASE_URL.'
  }
  return 'Compare the user and the password of DATABASE_URL with the database. A role that has rds_iam signs in by token only (DATABASE_AUTH=iam).'
}

const unreachable =
  'Three things are needed: the function is in subnets that reach the database (VPC); the security group of the database lets the function’s security group in on its port; and the host and the port are right.'

const networkAdvice: Readonly<Record<string, string>> = {
  CONNECT_TIMEOUT: `No answer. ${unreachable} Aurora that has gone to zero capacity takes 15 s and more to come back.`,
  ETIMEDOUT: `No answer. ${unreachable}`,
  EHOSTUNREACH: unreachable,
  ENETUNREACH: unreachable,
  ECONNREFUSED: 'Nothing listens there: check the host and the port, and that the database is started.',
  ENOTFOUND:
    'No such host: check DATABASE_HOST (or the host of the url or the secret), and that the VPC resolves names (enableDnsSupport).',
  EAI_AGAIN: 'The name of the host could not be resolved just now: check that the VPC resolves names.',
  '3D000': 'There is no such database: check DATABASE_NAME (or the name in the url or the secret).',
  '53300':
    'The database has no connection left: each running poller takes one. Lower the reserved concurrency of the functions, or raise max_connections.',
}

function certificateAdvice(code: string): string | null {
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return 'The certificate is for another host: use the endpoint that RDS gives the database, not an alias or an address.'
  }
  const untrusted =
    /^(SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_|CERT_|ERR_TLS_|ERR_SSL_)/
  if (!untrusted.test(code)) return null
  return 'The certificate cannot be verified: set DATABASE_CA_FILE to the PEM file of the authority that signed it. Nothing was sent.'
}
