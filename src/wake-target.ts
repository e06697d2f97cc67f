import type { Sql } from './db/client.ts'
import { databaseError } from './db/database-error.ts'
import { InvalidOptionError } from './errors.ts'

/** The Lambda function that a publish invokes when no poller is awake. */
export interface WakeTarget {
  /** Its name, partial ARN or ARN. */
  readonly functionArn: string
  /** Default: that of the ARN, or of the database. */
  readonly region?: string
  /** A publish waits so long at most to connect to Lambda, and again for its answer. 1–60,000 ms, default 1,000. */
  readonly timeoutMs?: number
}

const functionForm =
  /^(?:(?:arn:aws[a-z-]*:lambda:(?<region>[a-z0-9-]+):)?\d{12}:function:)?[A-Za-z0-9_-]{1,64}(?::[A-Za-z0-9_$-]+)?$/

/**
 * Has publishes invoke this function from now on; one that was set before is replaced. Needs RDS's extension aws_lambda.
 * @throws InvalidOptionError for what cannot be a function, its region or a time-out; DatabaseError, SchemaMissingError
 */
export async function setWake(sql: Sql, now: Date, target: WakeTarget): Promise<void> {
  const { functionArn, region = null, timeoutMs = 1_000 } = target
  const match = functionForm.exec(functionArn)
  if (match === null) {
    throw new InvalidOptionError(
      `Expected the name or ARN of a Lambda function, such as arn:aws:lambda:eu-central-1:123456789012:function:shop-wake, got ${functionArn}.`,
    )
  }
  const ofArn = match.groups?.['region'] ?? region
  if (region !== null && (!/^[a-z0-9-]+$/.test(region) || region !== ofArn)) {
    throw new InvalidOptionError(
      `Expected a region${ofArn === region ? ' such as eu-central-1' : `, that of the ARN, ${ofArn}`}, got ${region}.`,
    )
  }
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > 60_000) {
    throw new InvalidOptionError(`Expected timeoutMs to be a whole number of 1–60000, got ${timeoutMs}.`)
  }
  try {
    await sql`select loopless.set_wake(${now}, ${functionArn}, ${region}, ${timeoutMs})`
  } catch (error) {
    throw databaseError(error)
  }
}

/**
 * Has publishes invoke nobody: the schedule alone polls.
 * @returns whether a function had been set
 * @throws DatabaseError, SchemaMissingError
 */
export async function unsetWake(sql: Sql): Promise<boolean> {
  try {
    const [row] = await sql<{ wasSet: boolean }[]>`select loopless.unset_wake() as "wasSet"`
    return row?.wasSet ?? false
  } catch (error) {
    throw databaseError(error)
  }
}
