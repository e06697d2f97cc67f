import {
  GetAccountSettingsCommand,
  GetFunctionConcurrencyCommand,
  type LambdaClient,
} from '@aws-sdk/client-lambda'
import { error, type Finding } from './finding.ts'

/** How many functions may run at once in an account and a region. */
export interface Concurrency {
  readonly limit: number
  /** Not reserved by any function. */
  readonly unreserved: number
  /** Reserved by the function wake of an earlier deployment. */
  readonly reserved: number
}

/** What Lambda leaves at least to the functions that reserve nothing. */
const leastUnreserved = 10

/** Asks Lambda. @param functionName of the function wake */
export async function readConcurrency(client: LambdaClient, functionName: string): Promise<Concurrency> {
  const { AccountLimit } = await client.send(new GetAccountSettingsCommand({}))
  const earlier = await client
    .send(new GetFunctionConcurrencyCommand({ FunctionName: functionName }))
    .catch(() => null) // there is no such function yet
  return {
    limit: AccountLimit?.ConcurrentExecutions ?? 0,
    unreserved: AccountLimit?.UnreservedConcurrentExecutions ?? 0,
    reserved: earlier?.ReservedConcurrentExecutions ?? 0,
  }
}

/** Whether the function wake can have the concurrency that it reserves. */
export function judgeConcurrency(
  maxPollers: number,
  { limit, unreserved, reserved }: Concurrency,
): Finding[] {
  const left = unreserved + reserved - maxPollers
  if (left >= leastUnreserved) return []
  return [
    error(
      `The account may run ${limit} functions at once in this region, and Lambda wants ${leastUnreserved} of them unreserved: ` +
        `reserving ${maxPollers} for the function wake would leave ${left}. Ask for more (Service Quotas, AWS Lambda, ` +
        'Concurrent executions; 1,000 is what older accounts have):\n' +
        '  aws service-quotas request-service-quota-increase --service-code lambda --quota-code L-B99A9384 --desired-value 1000\n' +
        'or deploy without reserving, with --param reservePollers=false.',
    ),
  ]
}
