import type { Context } from 'aws-lambda'
import { retire } from './migration/retire.ts'
import { answering, isStackRequest } from './migration/stack-request.ts'
import { type UpgradeReport, upgrade } from './migration/upgrade.ts'

/**
 * Run by a deployment, before any other function is updated: brings the schema, the roles and the registered handlers
 * to this version. A custom resource of CloudFormation invokes it (serverless.yml), or a person does.
 *
 * For CloudFormation it answers at the ResponseURL, whatever happens, and resolves. Deleting the stack ends the waking of
 * its function and deletes nothing else in the database. For a person it resolves to the report, or throws.
 *
 * Environment, beside the database's: WAKE_FUNCTION_ARN, whom a publish invokes; POLLER_ROLE, PUBLISHER_ROLE and
 * VIEWER_ROLE, by default loopless_poller, loopless_publisher and loopless_viewer; FUNCTIONS_AUTH=iam when the other
 * functions sign in by IAM tokens.
 */
export async function handler(
  event: unknown,
  context: Pick<Context, 'getRemainingTimeInMillis'>,
): Promise<UpgradeReport | undefined> {
  const endsAtMs = performance.now() + context.getRemainingTimeInMillis()
  if (isStackRequest(event)) {
    await answering(event, endsAtMs, {
      upgrade: (signal) => upgrade(process.env, signal),
      retire: (signal) => retire(process.env, signal),
    })
    return undefined
  }
  return upgrade(process.env, AbortSignal.timeout(Math.max(0, context.getRemainingTimeInMillis() - 5_000)))
}
