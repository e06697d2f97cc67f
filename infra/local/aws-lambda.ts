import { readFileSync } from 'node:fs'
import type { Sql } from '../../src/index.ts'

const files = { 'at the commit': ['aws_lambda.sql'], 'at once': ['aws_lambda.sql', 'aws_lambda_at_once.sql'] }

/**
 * Installs the stand-in for RDS's extension aws_lambda. `at the commit`: by a notification, for a receiver such as
 * bridge.ts. `at once`: by curl, inside the transaction as on RDS; the role must be a superuser.
 *
 * @throws the server's error when the database has the extension itself, or the role may not
 */
export async function installAwsLambda(sql: Sql, when: keyof typeof files): Promise<void> {
  const session = await sql.reserve()
  try {
    for (const file of files[when]) {
      await session.unsafe(readFileSync(new URL(file, import.meta.url), 'utf8'))
    }
  } catch (error) {
    await session`rollback`
    throw error
  } finally {
    session.release()
  }
}
