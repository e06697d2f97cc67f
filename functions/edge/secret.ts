import { fetchSecret } from './fetch-secret.ts'
import { SettingError } from './setting.ts'

/** What a secret says of a database: the form that RDS and Secrets Manager give it. */
export interface DatabaseSecret {
  readonly username: string
  readonly password: string
  readonly host: string | null
  readonly port: number | null
  readonly name: string | null
}

/** How long a secret that was read is used for further connections. */
const keptMs = 30_000

/** A secret, read when it is needed. */
export interface SecretReader {
  /** The secret as it is now, or was at most 30 s ago. @throws SettingError */
  read(): Promise<DatabaseSecret>
  /** Forgets what was read, as after a sign-in that was refused: the secret may have been rotated. */
  forget(): void
}

/**
 * Reads a secret at most once in 30 s, however many connections are opened in them; connections that are opened at the
 * same time wait for one answer.
 * @param fetchText asks Secrets Manager
 * @param clock milliseconds
 */
export function secretReader(
  arn: string,
  fetchText: (arn: string) => Promise<string> = fetchSecret,
  clock: () => number = () => performance.now(),
): SecretReader {
  let kept: { readonly secret: Promise<DatabaseSecret>; readonly untilMs: number } | null = null
  return {
    read() {
      if (kept !== null && clock() < kept.untilMs) return kept.secret
      const secret = fetchText(arn).then((text) => parseSecret(text, arn))
      const entry = { secret, untilMs: clock() + keptMs }
      kept = entry
      secret.catch(() => {
        if (kept === entry) kept = null
      })
      return secret
    },
    forget() {
      kept = null
    },
  }
}

/** Nothing of the text is ever said: it holds a password. */
function parseSecret(text: string, arn: string): DatabaseSecret {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    parsed = null
  }
  const { username, password, host, port, dbname } = (parsed ?? {}) as Record<string, unknown>
  if (typeof username !== 'string' || typeof password !== 'string' || username === '') {
    throw new SettingError(
      `Expected the secret ${arn} (DATABASE_SECRET_ARN) to be JSON with "username" and "password", as RDS makes it.`,
    )
  }
  return {
    username,
    password,
    host: typeof host === 'string' && host !== '' ? host : null,
    port: Number(port) || null,
    name: typeof dbname === 'string' && dbname !== '' ? dbname : null,
  }
}
