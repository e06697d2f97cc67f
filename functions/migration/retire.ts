import type { Environment } from '../edge/setting.ts'
import { withDatabase } from './patient-connection.ts'

/** A database that is at zero capacity takes 15 s, or 30 after a day; one that is gone holds up nobody for longer. */
const patienceMs = 60_000

/**
 * For a stack that is removed: from then on a publish does not invoke its function, which is gone. What else is in the
 * database stays as it is, and so does the target of somebody else.
 * @throws SettingError, and what the driver throws, with what to do
 */
export async function retire(environment: Environment, signal: AbortSignal): Promise<void> {
  const functionArn = environment['WAKE_FUNCTION_ARN']
  if (!functionArn) return
  await withDatabase(environment, AbortSignal.any([signal, AbortSignal.timeout(patienceMs)]), async (sql) => {
    await sql`select loopless.unset_wake() from loopless.wake_target where function_arn = ${functionArn}`
  })
}
