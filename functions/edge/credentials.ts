import { setting } from './setting.ts'

/** Credentials of AWS. */
export interface Credentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string
}

/**
 * The credentials of the function's role, as Lambda gives them. Read from the environment each time, and not looked for
 * anywhere else: looking takes code and time.
 * @throws SettingError when there are none
 */
export function roleCredentials(): Credentials {
  const sessionToken = process.env['AWS_SESSION_TOKEN']
  return {
    accessKeyId: setting('AWS_ACCESS_KEY_ID'),
    secretAccessKey: setting('AWS_SECRET_ACCESS_KEY'),
    ...(sessionToken && { sessionToken }),
  }
}
