import { type Environment, SettingError } from './setting.ts'

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
  /** The secret as it is now, or was at most 30 s ago. @throws SettingError, and what Secrets Manager answers */
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

async function fetchSecret(arn: string): Promise<string> {
  // imported here, so that a function that signs in otherwise does not load it
  const { SecretsManagerClient, GetSecretValueCommand } = await import('@aws-sdk/client-secrets-manager')
  const region = regionOfArn(arn, process.env)
  const client = new SecretsManagerClient({ ...(region && { region }), maxAttempts: 3 })
  try {
    const { SecretString: text } = await client.send(new GetSecretValueCommand({ SecretId: arn }), {
      abortSignal: AbortSignal.timeout(10_000),
    })
    if (text === undefined) throw new SettingError(`Expected the secret ${arn} to be text, got binary.`)
    return text
  } finally {
    client.destroy()
  }
}

function regionOfArn(arn: string, environment: Environment): string | undefined {
  return arn.match(/^arn:[^:]+:secretsmanager:([^:]+):/)?.[1] ?? environment['AWS_REGION']
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
