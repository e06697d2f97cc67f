import { roleCredentials } from './credentials.ts'
import type { TokenSettings } from './database-settings.ts'

/**
 * Signs a token of RDS IAM for one connection: a password that is good for 15 minutes to sign in with, and a connection
 * that has signed in stays. Signing is arithmetic, nothing is asked of AWS: so each connection gets a token of its own,
 * and none is ever too old.
 * @throws SettingError when the function has no credentials
 */
export async function signToken({ host, port, user, region }: TokenSettings): Promise<string> {
  // imported here, so that a function that signs in otherwise does not load it
  const { Signer } = await import('@aws-sdk/rds-signer')
  const signer = new Signer({ hostname: host, port, username: user, region, credentials: roleCredentials() })
  return signer.getAuthToken()
}
