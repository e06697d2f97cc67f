import { InvokeCommand, LambdaClient, TooManyRequestsException } from '@aws-sdk/client-lambda'
import type { PollerPurpose } from '../../src/index.ts'
import { setting } from './setting.ts'

/**
 * Made with the first invocation; one attempt each: an invocation is a hint, the table is the truth. It must have failed
 * while there is time to say so (src/succession.ts), and on a connection of its own: one that was kept may be gone, and
 * nobody told while the environment was frozen.
 */
let client: LambdaClient | undefined

/**
 * Invokes this function once more, asynchronously: Lambda accepts it also while as many run as may, and keeps it waiting. That
 * the account sends more requests than it may passes by itself, and is not logged.
 * @throws what Lambda answered: nobody is on the way
 */
export async function invokeSelf(purpose: PollerPurpose): Promise<void> {
  client ??= new LambdaClient({
    maxAttempts: 1,
    requestHandler: {
      connectionTimeout: 500,
      requestTimeout: 1_000,
      throwOnRequestTimeout: true,
      httpAgent: { keepAlive: false },
      httpsAgent: { keepAlive: false },
    },
  })
  try {
    await client.send(
      new InvokeCommand({
        FunctionName: setting('AWS_LAMBDA_FUNCTION_NAME'),
        InvocationType: 'Event',
        Payload: JSON.stringify({ loopless: purpose }),
      }),
    )
  } catch (error) {
    if (!(error instanceof TooManyRequestsException)) {
      console.warn(JSON.stringify({ level: 'warn', message: `Invoking a poller failed: ${error}`, purpose }))
    }
    throw error
  }
}
