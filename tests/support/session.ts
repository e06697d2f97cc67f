import postgres from 'postgres'

/** Runs a few statements in a session of their own and closes it. */
export async function withSession<Result>(
  url: string,
  use: (sql: postgres.Sql) => PromiseLike<Result>,
): Promise<Result> {
  const sql = postgres(url, { max: 1, onnotice: () => {} })
  try {
    return await use(sql)
  } finally {
    await sql.end({ timeout: 5 })
  }
}
