import type { Sql } from '../../src/index.ts'

/** What became of waking. `set`: a publish invokes the function. `off`: no function was given. */
export type WakeReport = 'set' | 'off' | 'no aws_lambda in this database: the schedule alone polls'

/**
 * Lets the database invoke the wake function: makes the extension where there is one (RDS, Aurora) and says whom to
 * invoke. A database without it, or a stand-in, is polled by the schedule alone. Without a function, nothing is changed.
 */
export async function prepareWake(sql: Sql, functionArn: string | null): Promise<WakeReport> {
  if (functionArn === null) return 'off'
  const [available] = await sql`select from pg_available_extensions where name = 'aws_lambda'`
  if (available) await sql`create extension if not exists aws_lambda cascade`
  const [row] = await sql<{ canInvoke: boolean }[]>`
    select exists (
      select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname = 'aws_lambda' and p.proname = 'invoke'
    ) as "canInvoke"`
  if (!row?.canInvoke) return 'no aws_lambda in this database: the schedule alone polls'
  const region = functionArn.split(':')[3] || null
  await sql`select loopless.set_wake(clock_timestamp(), ${functionArn}, ${region})`
  return 'set'
}
