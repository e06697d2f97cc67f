import type { TokenSettings } from './database-settings.ts'
import { setting } from './setting.ts'

/**
 * Signs a token of RDS IAM for one connection: a password that is good for 15 minutes to sign in with, and a connection
 * that has signed in stays. Signing is arithmetic, nothing is asked of AWS: so each connection gets a token of its own,
 * and none is ever too old.
 *
 * The credentials are those of the function's role. They are read from the environment each time, and not looked for
 * anywhere else: looking takes code and time.
 * @throws SettingError when there are no credentials
 */
export async function signToken({ host, port, user, region }: TokenSettings): Promise<string> {
  // imported here, so that a function that signs in otherwise does not load it
  const { Signer } = await import('@aws-sdk/rds-signer')
  const sessionToken = process.env['AWS_SESSION_TOKEN']
  const signer = new Signer({
    hostname: host,
    port,
    username: user,
    region,
    credentials: {
      accessKeyId: setting('AWS_ACCESS_KEY_ID'),
      secretAccessKey: setting('AWS_SECRET_ACCESS_KEY'),
      ...(sessionToken && { sessionToken }),
    },
  })
  return signer.getAuthToken()
}
