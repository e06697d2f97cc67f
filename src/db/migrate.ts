import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MigrationError } from '../errors.ts'
import type { Sql, TransactionSql } from './client.ts'
import { databaseError } from './database-error.ts'

/** One step of the schema: a file `NNNN_verb_noun.sql`. */
export interface Migration {
  readonly version: number
  readonly name: string
  readonly text: string
}

/** Key of the advisory lock that lets one `migrate` run at a time: ('LOOP', 2). */
const lockKey = [1280262992, 2] as const

const oldestServer = 140_000

/** A migration that the database has. */
interface Applied {
  readonly version: number
  readonly name: string
  readonly checksum: string
}

/**
 * Brings the schema to this code's version: each missing migration in its own transaction, in order.
 * Concurrent runs wait for each other and apply each migration once. Needs no superuser: a role that owns its
 * database, or one that may create in a schema `loopless` made for it.
 * @returns the names of the migrations that this call applied; empty when nothing was missing
 * @throws MigrationError `DATABASE_NEWER`, `MIGRATION_CHANGED`, `MIGRATION_FAILED`; DatabaseError
 */
export async function migrate(
  sql: Sql,
  migrations: ReadonlyArray<Migration> = readMigrations(),
): Promise<string[]> {
  const applied: string[] = []
  try {
    for (const migration of migrations) {
      // whatever the role's default is: the history must be read as it is once the lock is there
      const isNew = await sql.begin('isolation level read committed read write', (tx) =>
        applyOnce(tx, migration, migrations),
      )
      if (isNew) applied.push(migration.name)
    }
  } catch (error) {
    throw databaseError(error)
  }
  return applied
}

async function applyOnce(
  tx: TransactionSql,
  migration: Migration,
  all: ReadonlyArray<Migration>,
): Promise<boolean> {
  await lockMigrations(tx)
  await refuseOldServer(tx)
  await createHistory(tx)
  const history = await tx<Applied[]>`
    select version, name, checksum
    from loopless.schema_migration
    order by version`
  refuseOtherHistory(history, all)
  if (history.some((row) => row.version === migration.version)) return false
  try {
    await tx.unsafe(migration.text)
    await renewRoles(tx)
  } catch (error) {
    throw new MigrationError(
      'MIGRATION_FAILED',
      `Migration ${migration.name} failed and was rolled back: ${(error as Error).message}`,
      { cause: error },
    )
  }
  await tx`
    insert into loopless.schema_migration (version, name, checksum)
    values (${migration.version}, ${migration.name}, ${checksumOf(migration.text)})`
  return true
}

/** Lets one transaction at a time change the schema or the roles, however long it takes; the others wait. */
export async function lockMigrations(tx: TransactionSql): Promise<void> {
  await tx`set local statement_timeout = 0`
  await tx`set local lock_timeout = 0`
  await tx`set local client_min_messages = warning`
  await tx`select pg_advisory_xact_lock(${lockKey[0]}, ${lockKey[1]})`
}

/** In the transaction that made something new, so that no role is ever without what its functions need. */
async function renewRoles(tx: TransactionSql): Promise<void> {
  const [row] = await tx<{ hasRoles: boolean }[]>`
    select to_regprocedure('loopless.renew_roles(timestamptz)') is not null as "hasRoles"`
  if (row?.hasRoles) await tx`select loopless.renew_roles(now())`
}

async function refuseOldServer(tx: TransactionSql): Promise<void> {
  const [row] = await tx<{ number: number; version: string }[]>`
    select current_setting('server_version_num')::int as number, current_setting('server_version') as version`
  if (row === undefined || row.number >= oldestServer) return
  throw new MigrationError('MIGRATION_FAILED', `Expected Postgres 14 or newer, got ${row.version}.`)
}

async function createHistory(tx: TransactionSql): Promise<void> {
  // looked up first: "if not exists" asks for the right to create a schema even when it exists
  const [row] = await tx<{ hasSchema: boolean; hasTable: boolean }[]>`
    select
      to_regnamespace('loopless') is not null as "hasSchema",
      to_regclass('loopless.schema_migration') is not null as "hasTable"`
  if (!row?.hasSchema) {
    await tx.unsafe(`
      create schema loopless;
      comment on schema loopless is 'Loopless: an event bus. See docs/design.md.';
    `)
  }
  if (row?.hasTable) return
  await tx.unsafe(`
    create table loopless.schema_migration (
      version integer primary key,
      name text not null,
      checksum text not null,
      applied_at timestamptz not null default now()
    );
    comment on table loopless.schema_migration is 'Migrations applied by loopless migrate.';
    comment on column loopless.schema_migration.version is 'Number in the name of the file.';
    comment on column loopless.schema_migration.name is 'File name without its ending.';
    comment on column loopless.schema_migration.checksum is 'SHA-256 of the text that was applied.';
    comment on column loopless.schema_migration.applied_at is 'Start of the transaction that applied it.';
  `)
}

/** What the database has must be the beginning of what this code has. */
function refuseOtherHistory(history: ReadonlyArray<Applied>, all: ReadonlyArray<Migration>): void {
  const newest = Math.max(0, ...all.map((migration) => migration.version))
  const unknown = history.find((row) => row.version > newest)
  if (unknown) {
    throw new MigrationError(
      'DATABASE_NEWER',
      `The database is newer than this code: it has migration ${unknown.name}, this code knows versions up to ${newest}. Deploy the newer code; going on could damage events.`,
    )
  }
  for (const [index, row] of history.entries()) {
    const migration = all[index]
    if (migration?.version !== row.version) {
      throw new MigrationError(
        'MIGRATION_CHANGED',
        `The migrations of this database are others than this code's: expected ${row.name}, got ${migration?.name ?? 'none'}. Migrations are only ever added at the end.`,
      )
    }
    const checksum = checksumOf(migration.text)
    if (checksum === row.checksum) continue
    throw new MigrationError(
      'MIGRATION_CHANGED',
      `Migration ${migration.name} was changed after it had been applied here (expected checksum ${row.checksum.slice(0, 12)}, got ${checksum.slice(0, 12)}). Restore the file and put the change into a new migration.`,
    )
  }
}

function checksumOf(text: string): string {
  return createHash('sha256').update(text.replaceAll('\r\n', '\n')).digest('hex')
}

/**
 * The migrations shipped with this code, from the nearest `infra/migrations` above this file.
 * @throws MigrationError `MIGRATION_FAILED` when the folder is missing, or holds something else
 */
export function readMigrations(): Migration[] {
  const folder = findMigrations(dirname(fileURLToPath(import.meta.url)))
  return readdirSync(folder)
    .filter((file) => file.endsWith('.sql'))
    .sort()
    .map((file, index) => {
      const version = Number(file.slice(0, 4))
      if (version === index + 1) {
        return { version, name: file.replace(/\.sql$/, ''), text: readFileSync(join(folder, file), 'utf8') }
      }
      throw new MigrationError(
        'MIGRATION_FAILED',
        `Expected migration ${index + 1} in ${folder}, got ${file}. Install the package again.`,
      )
    })
}

function findMigrations(from: string): string {
  const folder = join(from, 'infra', 'migrations')
  // a folder of that name may be somebody else's
  if (existsSync(join(folder, '0001_create_tables.sql'))) return folder
  if (dirname(from) !== from) return findMigrations(dirname(from))
  throw new MigrationError(
    'MIGRATION_FAILED',
    'The folder infra/migrations is missing beside this code: install the package again.',
  )
}
