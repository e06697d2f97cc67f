import type postgres from 'postgres'

/** Whether this server, for this role, can invoke from inside a transaction: a superuser's, local, with curl. */
export async function canInvokeAtOnce(sql: postgres.Sql): Promise<boolean> {
  try {
    await sql`copy (select 1) to program 'curl --version > /dev/null'`
    return true
  } catch {
    return false
  }
}
