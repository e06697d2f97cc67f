import { InvalidOptionError, RoleError } from '../errors.ts'
import type { Sql, TransactionSql } from './client.ts'
import { databaseError } from './database-error.ts'
import { lockMigrations } from './migrate.ts'

/** What a role is for. */
export type Part = 'publisher' | 'poller' | 'viewer'

/** The roles of a bus by what they are for. Roles belong to the cluster: two buses in one may want two of each. */
export type RoleNames = Readonly<Record<Part, string>>

/** Names that are used when none are given. */
export const defaultRoleNames: RoleNames = {
  publisher: 'loopless_publisher',
  poller: 'loopless_poller',
  viewer: 'loopless_viewer',
}

const parts = ['publisher', 'poller', 'viewer'] as const

/** What `createRoles` did for one role. */
export interface CreatedRole {
  readonly part: Part
  readonly name: string
  /** False when it existed. */
  readonly isCreated: boolean
  /** Rights that it did not have yet, as grant takes them; empty when there was nothing to do. */
  readonly granted: string[]
}

export interface CreateRolesOptions {
  readonly now: Date
  /** Names in place of the default ones. */
  readonly names?: Partial<RoleNames>
  /** Lets the roles sign in by tokens of RDS IAM, and no longer by a password: makes them members of rds_iam. */
  readonly withTokens?: boolean
}

/**
 * Creates the roles of the functions and grants each what it needs; what exists is left as it is, so it may be run
 * again, and by several at once. New roles may log in and have no password. Needs CREATEROLE for roles that do not
 * exist, and the owner of the schema (who migrated) for the rights.
 * @throws RoleError when a right is missing, or rds_iam is; InvalidOptionError, SchemaMissingError, DatabaseError
 */
export async function createRoles(sql: Sql, options: CreateRolesOptions): Promise<CreatedRole[]> {
  const names = { ...defaultRoleNames, ...options.names }
  for (const part of parts) refuseName(part, names[part])
  try {
    return await sql.begin('isolation level read committed read write', async (tx) => {
      await lockMigrations(tx)
      const created: CreatedRole[] = []
      for (const part of parts) {
        created.push(await createRole(tx, part, names[part], options))
      }
      return created
    })
  } catch (error) {
    throw databaseError(error)
  }
}

/** Postgres cuts a name that is too long, and would then not find it. */
function refuseName(part: Part, name: string): void {
  const bytes = Buffer.byteLength(name)
  if (bytes >= 1 && bytes <= 63) return
  throw new InvalidOptionError(`Expected the name of the ${part} to be a role of 1–63 bytes, got "${name}".`)
}

async function createRole(
  tx: TransactionSql,
  part: Part,
  name: string,
  { now, withTokens = false }: CreateRolesOptions,
): Promise<CreatedRole> {
  const isCreated = await ensureRole(tx, name)
  const granted = await grantPart(tx, part, name, now)
  if (withTokens && (await allowTokens(tx, name))) granted.push('rds_iam')
  return { part, name, isCreated, granted }
}

/** @returns whether it had to be created */
async function ensureRole(tx: TransactionSql, name: string): Promise<boolean> {
  const exists = await tx`select from pg_roles where rolname = ${name}`
  if (exists.length > 0) return false
  try {
    await tx.savepoint(async (inner) => {
      await inner`create role ${inner(name)} login`
      // what connect sets for a session, where a pooler takes no settings of one
      await inner`alter role ${inner(name)} set statement_timeout = '60s'`
      await inner`alter role ${inner(name)} set idle_in_transaction_session_timeout = '30s'`
    })
    return true
  } catch (cause) {
    const { code } = cause as { code?: string }
    // made just now, by a run in another database of the cluster, which the lock does not reach
    if (code === '42710' || code === '23505') return false
    if (code !== '42501') throw cause
    throw new RoleError(
      `The role "${name}" does not exist, and creating it takes CREATEROLE. Run this as an administrator (in RDS the master user), or have one run: create role ${quoted(name)} login. After that this only grants.`,
      { cause },
    )
  }
}

async function grantPart(tx: TransactionSql, part: Part, name: string, now: Date): Promise<string[]> {
  try {
    const [row] = await tx<{ granted: string[] }[]>`
      select loopless.grant_part(${now}, ${name}, ${part}) as granted`
    return row?.granted ?? []
  } catch (cause) {
    if ((cause as { code?: string }).code !== '42501') throw cause
    throw new RoleError(
      `The rights of "${name}" cannot be granted: ${(cause as Error).message}. Run this as the role that ran migrate, which owns the schema.`,
      { cause },
    )
  }
}

/** @returns whether it was let in by tokens just now */
async function allowTokens(tx: TransactionSql, name: string): Promise<boolean> {
  const [row] = await tx<{ exists: boolean; hasIt: boolean; user: string }[]>`
    select
      to_regrole('rds_iam') is not null as exists,
      exists (
        select from pg_auth_members m
        where m.roleid = to_regrole('rds_iam') and m.member = (select oid from pg_roles where rolname = ${name})
      ) as "hasIt",
      current_user as user`
  if (!row?.exists) {
    throw new RoleError(
      'There is no role rds_iam here: this is not RDS or Aurora. Leave --iam out, and give the roles passwords.',
    )
  }
  // the one who runs this may sign in by password, which rds_iam would end
  if (row.hasIt || row.user === name) return false
  try {
    await tx`grant rds_iam to ${tx(name)}`
    return true
  } catch (cause) {
    if ((cause as { code?: string }).code !== '42501') throw cause
    throw new RoleError(
      `"${name}" cannot be made a member of rds_iam: ${(cause as Error).message}. Run this as the master user of the database, or have that run: grant rds_iam to ${quoted(row.user)} with admin option;`,
      { cause },
    )
  }
}

function quoted(name: string): string {
  return /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`
}
