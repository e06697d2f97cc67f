import type { TransactionSql } from '../../src/index.ts'
import { SettingError } from '../edge/setting.ts'

/** What became of waking. `set`: a publish invokes the function. `off`: no function was given. */
export type WakeReport = 'set' | 'off' | 'no aws_lambda in this database: the schedule alone polls'

/**
 * Lets the database invoke the wake function: makes the extension where there is one (RDS, Aurora) and says whom to
 * invoke. A database without it, or a stand-in, is polled by the schedule alone. Without a function, nothing is changed.
 */
export async function prepareWake(tx: TransactionSql, functionArn: string | null): Promise<WakeReport> {
  if (functionArn === null) return 'off'
  await createExtension(tx)
  const [invoke] = await tx<{ owner: string; isAllowed: boolean }[]>`
    select
      wake.proowner::regrole::text as owner,
      has_function_privilege(wake.proowner, invoke.oid, 'execute')
        and has_schema_privilege(wake.proowner, invoke.pronamespace, 'usage') as "isAllowed"
    from pg_proc invoke, pg_proc wake
    where invoke.pronamespace = to_regnamespace('aws_lambda') and invoke.proname = 'invoke'
      and wake.oid = 'loopless.wake_on_publish'::regproc
    order by 2
    limit 1`
  if (invoke === undefined) return 'no aws_lambda in this database: the schedule alone polls'
  if (!invoke.isAllowed) {
    throw new SettingError(
      `WAKE_FUNCTION_ARN is set, but ${invoke.owner}, who owns the schema loopless, may not use aws_lambda. As the master user run: grant usage on schema aws_lambda, aws_commons to ${invoke.owner}; grant execute on all functions in schema aws_lambda, aws_commons to ${invoke.owner};`,
    )
  }
  const region = functionArn.split(':')[3] || null
  await tx`select loopless.set_wake(clock_timestamp(), ${functionArn}, ${region})`
  return 'set'
}

async function createExtension(tx: TransactionSql): Promise<void> {
  const [available] = await tx`select from pg_available_extensions where name = 'aws_lambda'`
  if (available === undefined) return
  try {
    await tx`create extension if not exists aws_lambda cascade`
  } catch (cause) {
    if ((cause as { code?: unknown }).code !== '42501') throw cause
    throw new SettingError(
      'WAKE_FUNCTION_ARN is set, and making the extension aws_lambda takes the master user. As that, run: create extension aws_lambda cascade;',
      { cause },
    )
  }
}
