import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MigrationError } from '../errors.ts'
import type { Sql, TransactionSql } from './client.ts'

/** One step of the schema: a file `NNNN_verb_noun.sql`. */
export interface Migration {
  readonly version: number
  readonly name: string
  readonly text: string
}

/** Key of the advisory lock that lets one `migrate` run at a time: ('LOOP', 2). */
const lockKey = [1280262992, 2] as const

/**
 * Brings the schema to this code's version: each missing migration in its own transaction, in order.
 * Concurrent runs wait for each other and apply each migration once.
 * @returns the names of the migrations that this call applied; empty when nothing was missing
 * @throws MigrationError `DATABASE_NEWER`, `MIGRATION_CHANGED`, `MIGRATION_FAILED`
 */
export async function migrate(sql: Sql, migrations: ReadonlyArray<Migration> = readMigrations()): Promise<string[]> {
  const applied: string[] = []
  for (const migration of migrations) {
    const isNew = await sql.begin((tx) => applyOnce(tx, migration, migrations))
    if (isNew) applied.push(migration.name)
  }
  return applied
}

async function applyOnce(tx: TransactionSql, migration: Migration, all: ReadonlyArray<Migration>): Promise<boolean> {
  await tx`set local statement_timeout = 0`
  await tx`set local client_min_messages = warning`
  await tx`select pg_advisory_xact_lock(${lockKey[0]}, ${lockKey[1]})`
  await createHistory(tx)
  const known = await tx<{ version: number; name: string; checksum: string }[]>`
    select version, name, checksum from loopless.schema_migration order by version`
  refuseUnknown(known, all)
  const earlier = known.find((row) => row.version === migration.version)
  const checksum = checksumOf(migration.text)
  if (earlier) {
    if (earlier.checksum === checksum) return false
    throw new MigrationError(
      'MIGRATION_CHANGED',
      `Migration ${migration.name} was changed after it had been applied here (expected checksum ${earlier.checksum.slice(0, 12)}, got ${checksum.slice(0, 12)}). Restore the file and put the change into a new migration.`,
    )
  }
  try {
    await tx.unsafe(migration.text)
  } catch (error) {
    throw new MigrationError('MIGRATION_FAILED', `Migration ${migration.name} failed and was rolled back: ${(error as Error).message}`, { cause: error })
  }
  await tx`
    insert into loopless.schema_migration (version, name, checksum)
    values (${migration.version}, ${migration.name}, ${checksum})`
  return true
}

async function createHistory(tx: TransactionSql): Promise<void> {
  // to_regclass first: "create schema if not exists" asks for the right to create even when it exists
  const [row] = await tx<{ exists: boolean }[]>`select to_regclass('loopless.schema_migration') is not null as exists`
  if (row?.exists) return
  await tx.unsafe(`
    create schema if not exists loopless;
    comment on schema loopless is 'Loopless: an event bus. See docs/design.md.';
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

function refuseUnknown(known: ReadonlyArray<{ version: number; name: string }>, all: ReadonlyArray<Migration>): void {
  const newest = Math.max(0, ...all.map((migration) => migration.version))
  const unknown = known.find((row) => row.version > newest)
  if (!unknown) return
  throw new MigrationError(
    'DATABASE_NEWER',
    `The database is newer than this code: it has migration ${unknown.name}, this code knows versions up to ${newest}. Deploy the newer code; going on could damage events.`,
  )
}

function checksumOf(text: string): string {
  return createHash('sha256').update(text.replaceAll('\r\n', '\n')).digest('hex')
}

/** The migrations shipped with this code, from the nearest `infra/migrations` above this file. */
export function readMigrations(): Migration[] {
  const folder = findMigrations(dirname(fileURLToPath(import.meta.url)))
  return readdirSync(folder)
    .filter((file) => file.endsWith('.sql'))
    .sort()
    .map((file) => ({
      version: Number(file.slice(0, 4)),
      name: file.replace(/\.sql$/, ''),
      text: readFileSync(join(folder, file), 'utf8'),
    }))
}

function findMigrations(from: string): string {
  const folder = join(from, 'infra', 'migrations')
  if (existsSync(folder)) return folder
  if (dirname(from) === from) throw new MigrationError('MIGRATION_FAILED', 'The folder infra/migrations is missing beside this code: install the package again.')
  return findMigrations(dirname(from))
}
