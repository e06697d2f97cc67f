import { connect, type Sql } from '../../src/index.ts'

/** A setting of the deployment; serverless.yml gives each its value. */
export function setting(name: string): string {
  const value = process.env[name]
  if (!value) throw new Error(`Expected the environment variable ${name} to be set: see serverless.yml.`)
  return value
}

/** The client of this environment (one running copy of a function), kept from invocation to invocation. */
export const sql: Sql = connect(setting('DATABASE_URL'), {
  applicationName: process.env['AWS_LAMBDA_FUNCTION_NAME'] ?? 'loopless',
})

const stopping = new AbortController()
process.once('SIGTERM', () => stopping.abort())

/** Aborted when this environment is asked to end. */
export const stopSignal: AbortSignal = stopping.signal
