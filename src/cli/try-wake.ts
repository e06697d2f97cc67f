import type { Sql } from '../db/client.ts'

/** What came of a wake that was sent on trial. */
export interface WakeTrial {
  /** The status that Lambda answered: 202 when it took the wake. Null: there was no answer. */
  readonly status: number | null
  readonly tookMs: number
  /** It was sent as a notification by a stand-in for the extension: nobody knows whether somebody receives it. */
  readonly isNotification: boolean
  /** What went wrong, and how to mend it. */
  readonly failure: { readonly code: string; readonly message: string; readonly mend: string } | null
}

/** Sends a wake as a publish would, with its rights and time-outs, whoever is awake. Null: no target is set. */
export async function tryWake(sql: Sql): Promise<WakeTrial | null> {
  const [target] = await sql<{ timeoutMs: number; owner: string; isNotification: boolean }[]>`
    select
      t.timeout_ms as "timeoutMs",
      (select pg_get_userbyid(p.proowner) from pg_proc p where p.oid = 'loopless.wake_on_publish()'::regprocedure) as owner,
      exists (
        select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'aws_lambda' and p.proname = 'invokes_at_commit'
      ) as "isNotification"
    from loopless.wake_target t`
  if (target === undefined) return null
  const { isNotification } = target
  const beganMs = performance.now()
  try {
    const [row] = await sql<{ status: number | null }[]>`select loopless.test_wake() as status`
    const tookMs = performance.now() - beganMs
    const status = row?.status ?? null
    const failure = status === 202 ? null : unexpected(status)
    return { status, tookMs, isNotification, failure }
  } catch (error) {
    if (!isServerError(error)) throw error
    const tookMs = performance.now() - beganMs
    const message = [error.message, error.detail].filter(Boolean).join(': ').replace(/\.$/, '')
    const failure = { code: error.code, message, mend: mendFor(error.code, message, target) }
    return { status: null, tookMs, isNotification, failure }
  }
}

interface ServerError extends Error {
  readonly code: string
  readonly severity: string
  readonly detail?: string
}

/** Of the server, not of the connection to it. */
function isServerError(error: unknown): error is ServerError {
  return (
    error instanceof Error && 'severity' in error && 'code' in error && !String(error.code).startsWith('57P')
  )
}

function unexpected(status: number | null): WakeTrial['failure'] {
  return {
    code: 'STATUS',
    message: `Lambda answered ${status ?? 'nothing'} where 202 was expected`,
    mend: 'Look at the function in the console of AWS.',
  }
}

/** What to do, for the first of these that the error is like. What RDS says is in its guide, "Lambda function error messages". */
function mendFor(code: string, message: string, target: { owner: string; timeoutMs: number }): string {
  const { owner, timeoutMs } = target
  const known: [isIt: boolean, mend: string][] = [
    [
      ['3F000', '42883', '42704'].includes(code),
      'The extension is missing: on RDS run "create extension aws_lambda cascade" in this database; elsewhere "loopless wake off".',
    ],
    [
      code === '42501',
      `The owner of the bus lacks the right: grant usage on schema aws_lambda to "${owner}"; grant execute on all functions in schema aws_lambda to "${owner}".`,
    ],
    [
      /credentials|feature-name|IAM role/i.test(message),
      'The database has no role: add one that may lambda:InvokeFunction to the instance or cluster, for the feature Lambda.',
    ],
    [
      /\b403\b|AccessDenied|not authorized/i.test(message),
      'The role of the database may not: allow it lambda:InvokeFunction on this function.',
    ],
    [
      /\b404\b|not found/i.test(message),
      'There is no such function in that region: loopless wake set with its ARN.',
    ],
    [
      /timed out|time-?out/i.test(message),
      `There was no answer within ${timeoutMs} ms: look whether the database can reach Lambda on port 443 (a NAT gateway or a VPC endpoint), or allow more with loopless wake set --timeout-ms.`,
    ],
    [
      /connect/i.test(message),
      'The database cannot reach Lambda: allow port 443 out of its security group, by a NAT gateway or a VPC endpoint for Lambda; with an endpoint, set rds.custom_dns_resolution to 1.',
    ],
  ]
  return known.find(([isIt]) => isIt)?.[1] ?? 'Until that is mended, the schedule alone polls.'
}
