import { connect } from '../../src/index.ts'
import { error, type Finding, note } from './finding.ts'

/** How long a database is waited for that does not answer. */
const connectTimeoutSeconds = 5

/** Signs in to a database as the owner of the schema would, and looks whether it will do. Changes nothing. */
export async function checkConnection(url: string): Promise<Finding[]> {
  const sql = connect(url, { applicationName: 'loopless deploy', max: 1, connectTimeoutSeconds })
  try {
    const [row] = await sql<Facts[]>`
      select
        current_user as "user",
        current_database() as "database",
        current_setting('server_version') as "version",
        current_setting('server_version_num')::int as "versionNumber",
        coalesce(
          has_schema_privilege(to_regnamespace('loopless'), 'create'),
          has_database_privilege(current_database(), 'create')
        ) as "mayCreate",
        (select r.rolsuper or r.rolcreaterole from pg_roles r where r.rolname = current_user)
          or (
            select count(*) = 3
            from pg_roles r
            where r.rolname in ('loopless_publisher', 'loopless_poller', 'loopless_viewer')
          ) as "mayMakeRoles",
        exists (select from pg_available_extensions where name = 'aws_lambda') as "hasLambda"`
    return row === undefined ? [] : judge(row)
  } catch (cause) {
    return [sayUnreachable(cause)]
  } finally {
    await sql.end({ timeout: 1 })
  }
}

interface Facts {
  readonly user: string
  readonly database: string
  readonly version: string
  readonly versionNumber: number
  readonly mayCreate: boolean
  readonly mayMakeRoles: boolean
  readonly hasLambda: boolean
}

function judge({ user, database, version, versionNumber, ...can }: Facts): Finding[] {
  const findings: Finding[] = []
  if (versionNumber < 140_000) {
    findings.push(error(`The database is PostgreSQL ${version}; 14 is the oldest that will do.`))
  }
  if (!can.mayCreate) {
    findings.push(
      error(
        `${user} may not make the schema loopless in ${database}. As its owner:\n` +
          `  grant create on database ${database} to ${user};`,
      ),
    )
  }
  if (!can.mayMakeRoles) {
    findings.push(
      error(
        `${user} may not make the roles of the functions. As a superuser, or the master user of RDS:\n` +
          `  alter role ${user} createrole;`,
      ),
    )
  }
  if (!can.hasLambda) {
    findings.push(
      note(
        'The extension aws_lambda is not available in the database (RDS and Aurora have it): nothing can wake the functions, and events wait for the schedule, a minute at most.',
      ),
    )
  }
  return findings
}

/** What the server says when it was reached and refused. */
const refusals = new Set(['28P01', '28000', '3D000'])

function sayUnreachable(cause: unknown): Finding {
  const { code, message } = cause as { code?: unknown; message?: unknown }
  if (refusals.has(String(code))) {
    return error(`The database refused the URL of the owner: ${message}. Check user, password and database.`)
  }
  return note(
    `The database could not be reached from here (${message}), so whether it will do is not known. The functions may have a way.`,
  )
}
