import { inject } from 'vitest'
import { withSession } from './session.ts'

/**
 * Runs what has `serverless package` run, when no other test file does: whatever folder it is given, serverless makes its
 * zip files in .serverless first. The lock is the test server's, so that a test that is killed does not keep it.
 */
export function packaging<Result>(run: () => Promise<Result>): Promise<Result> {
  return withSession(inject('serverUrl'), async (sql) => {
    await sql`select pg_advisory_lock(hashtext('serverless package'))`
    return run()
  })
}
