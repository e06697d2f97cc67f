import { handlers } from 'loopless:handlers'
import { handlerSchema, migrations } from 'loopless:schema'
import { type CreatedRole, MigrationError, migrate, register, type Sql } from '../../src/index.ts'

import type { Environment } from '../edge/setting.ts'
import { withDatabase } from './patient-connection.ts'
import { prepareRoles } from './roles.ts'
import { prepareWake, type WakeReport } from './wake-target.ts'

/** What a run did, and what the database has now. */
export interface UpgradeReport {
  /** Name of the newest migration that the database has. */
  readonly schemaVersion: string
  /** Migrations that this run applied. */
  readonly applied: string[]
  /** Hash of the registered handlers. */
  readonly handlerSet: string
  readonly handlers: string[]
  readonly roles: CreatedRole[]
  readonly wake: WakeReport
}

/** What `migrate` takes: "if not exists" is no answer to two that find nothing at the same moment. */
const migrationLock = [1280262992, 2] as const

/**
 * Brings a database to this version: schema, roles, tables of the handlers (functions/schema.sql), waking, and last the registered handlers,
 * from which on pollers of another version claim nothing: whatever fails before leaves the old version at work.
 * Any number of runs at once, and again; each step waits for others that do the same.
 * @param signal ends the work; what was not committed is rolled back
 * @throws SettingError, MigrationError, DatabaseError, and what the driver throws, with what to do
 */
export async function upgrade(environment: Environment, signal: AbortSignal): Promise<UpgradeReport> {
  return withDatabase(environment, signal, async (sql) => {
    const applied = await migrateForward(sql)
    const roles = await prepareRoles(sql, environment)
    const wake = await sql.begin(async (tx) => {
      await tx`select pg_advisory_xact_lock(${migrationLock[0]}, ${migrationLock[1]})`
      await tx.unsafe(handlerSchema)
      return prepareWake(tx, environment['WAKE_FUNCTION_ARN'] || null)
    })
    const [row] = await sql<{ now: Date; schemaVersion: string }[]>`
      select clock_timestamp() as now, m.name as "schemaVersion"
      from loopless.schema_migration m
      order by m.version desc
      limit 1`
    if (row === undefined) throw new Error('Expected the database to have migrations, got none.')
    await register(sql, handlers, row.now)
    const report = {
      schemaVersion: row.schemaVersion,
      applied,
      handlerSet: handlers.hash,
      handlers: handlers.handlers.map(({ name }) => name),
      roles,
      wake,
    }
    console.log(JSON.stringify({ level: 'info', message: 'Upgraded.', ...report }))
    return report
  })
}

/**
 * A schema that is newer than this code is left as it is: so it is when CloudFormation rolls a failed deployment back,
 * or an earlier version is deployed again. A deployment that refused it would be stuck, with handlers registered that
 * nobody has any more; and the schema of a version serves the code of the one before.
 */
async function migrateForward(sql: Sql): Promise<string[]> {
  try {
    return await migrate(sql, migrations)
  } catch (error) {
    if (!(error instanceof MigrationError) || error.code !== 'DATABASE_NEWER') throw error
    console.warn(JSON.stringify({ level: 'warn', message: `${error.message} The schema was left as it is.` }))
    return []
  }
}
