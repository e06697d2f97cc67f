import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import postgres from 'postgres'
import { freePort, postgresServer } from '../infra/local/postgres-server.ts'
import { connect, migrate, type Sql } from '../src/index.ts'
import { createRawLoop } from './raw-loop.ts'

/** Commits wait for the disk. Checkpoints and autovacuum come when a benchmark asks for them. */
const settings = {
  fsync: 'on',
  autovacuum: 'off',
  checkpoint_timeout: '1h',
  max_wal_size: '8GB',
  shared_buffers: '1GB',
  track_commit_timestamp: 'on', // to tell how soon after its commit an event was handled elsewhere
}

/** The server that everything is measured on. */
export interface BenchServer {
  /** The server, by its first database. */
  readonly url: string
  /** Makes a database with the schema and the raw loop in it. Returns its url. */
  createDatabase(name: string): Promise<string>
  stop(): Promise<void>
}

/** Starts a Postgres of the benchmark's own, in a temporary directory. */
export async function startBenchServer(): Promise<BenchServer> {
  const directory = mkdtempSync(join(tmpdir(), 'loopless-bench-'))
  chmodSync(directory, 0o755)
  const server = await postgresServer({
    dataDirectory: join(directory, 'data'),
    port: await freePort(),
    settings,
  })
  const remove = (): void => rmSync(directory, { recursive: true, force: true, maxRetries: 5 })
  process.once('exit', () => {
    server.destroyNow()
    remove()
  })
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130))
  await server.start()
  return {
    url: server.url,
    async createDatabase(name) {
      const admin = postgres(server.url, { max: 1, onnotice: () => {} })
      await admin`create database ${admin(name)}`
      await admin.end()
      const url = server.databaseUrl(name)
      const sql = connect(url, { statementTimeoutMs: 0 })
      await migrate(sql)
      await createRawLoop(sql)
      await sql.unsafe('create table public.effect (event_id bigint primary key, name text not null)')
      await sql.end()
      return url
    },
    async stop() {
      await server.destroy()
      remove()
    },
  }
}

/** WAL that an action wrote, in bytes. Anything else that runs on the server counts too. */
export async function walBytesOf(sql: Sql, action: () => Promise<unknown>): Promise<number> {
  const [before] = await sql<{ lsn: string }[]>`select pg_current_wal_insert_lsn() as lsn`
  await action()
  const [after] = await sql<{ bytes: number }[]>`
    select (pg_current_wal_insert_lsn() - ${before?.lsn ?? '0/0'}::pg_lsn)::float8 as bytes`
  return after?.bytes ?? Number.NaN
}
