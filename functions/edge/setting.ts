/** The environment of the process, or a test's. */
export type Environment = Readonly<Record<string, string | undefined>>

/** A setting of the deployment is missing, or is not what it should be; the message says which, and what to do. */
export class SettingError extends Error {
  override readonly name = 'SettingError'
}

/** A setting that the function cannot do without; serverless.yml gives each its value. @throws SettingError */
export function setting(name: string, environment: Environment = process.env): string {
  const value = environment[name]
  if (value) return value
  throw new SettingError(`Expected the environment variable ${name} to be set: see serverless.yml.`)
}
