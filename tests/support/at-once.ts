import postgres from 'postgres'

/** SQLSTATEs of: not a superuser, the program failed. */
const refusals = new Set(['42501', '38000'])

/** Whether this server, for this role, can invoke from inside a transaction: a superuser's, local, with curl. */
export async function canInvokeAtOnce(sql: postgres.Sql): Promise<boolean> {
  try {
    // a program that ended before it has read what it is given would be an error too
    await sql`copy (select 1) to program 'cat > /dev/null && curl --version > /dev/null'`
    return true
  } catch (error) {
    if (error instanceof postgres.PostgresError && refusals.has(error.code)) return false
    throw error
  }
}
