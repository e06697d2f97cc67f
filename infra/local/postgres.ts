import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { connect, type HandlerSet, migrate, register, type Sql } from '../../src/index.ts'
import { home, project, takeHome } from './home.ts'
import { type PostgresServer, postgresServer } from './postgres-server.ts'

/** LOOPLESS_POSTGRES_PORT, by default what serverless.yml has for the stage `local`. */
const port = Number(process.env['LOOPLESS_POSTGRES_PORT'] || 15_432)

/** The server that `npm start` runs; its data stays in `home`. */
export async function localPostgres(): Promise<PostgresServer> {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new Error(
      `Expected LOOPLESS_POSTGRES_PORT to be 1–65535, got ${process.env['LOOPLESS_POSTGRES_PORT']}.`,
    )
  }
  const server = await postgresServer({
    dataDirectory: join(home, 'postgres'),
    port,
    settings: { track_commit_timestamp: 'on' }, // to tell how soon after its commit an event was handled
  })
  const start = async (): Promise<void> => {
    try {
      await server.start()
    } catch (error) {
      if (!(error instanceof Error) || !error.message.includes(`port ${port}`)) throw error
      throw new Error(
        `Port ${port}, where Postgres was to listen, is taken by another program.\n` +
          'Stop that program, or choose another port or another database:\n\n' +
          `  LOOPLESS_POSTGRES_PORT=${port + 1} npm start\n` +
          '  DATABASE_URL=postgres://… npm start',
        { cause: error },
      )
    }
  }
  return { ...server, start }
}

/**
 * Makes a database ready for the functions: the schema, the tables of the example handlers, the registered handlers.
 *
 * @returns the names of the migrations that were missing
 */
export async function prepareDatabase(sql: Sql, handlers: HandlerSet): Promise<string[]> {
  const applied = await migrate(sql)
  await sql.unsafe(readFileSync(join(project, 'functions/schema.sql'), 'utf8'))
  await register(sql, handlers, new Date())
  return applied
}

/** The handlers as the build found them: needs both of esbuild.config.mjs. */
export async function builtHandlers(): Promise<HandlerSet> {
  const path = new URL('../../dist/functions/handlers.js', import.meta.url)
  const { handlers } = (await import(path.href)) as { handlers: HandlerSet }
  return handlers
}

/**
 * Starts the local server and makes its database ready, unless it runs already or another database is meant: then
 * `serverless offline` and `serverless invoke local` work by themselves.
 *
 * @returns what stops it, and has done so far enough when it is called while the process exits; undefined when
 * nothing was started
 */
export async function ensureLocalDatabase(
  databaseUrl: string,
  loadHandlers: () => Promise<HandlerSet>,
): Promise<(() => Promise<void>) | undefined> {
  const server = await localPostgres()
  if (databaseUrl !== server.url) return undefined
  const release = takeHome()
  if (release === undefined) return undefined
  const stop = (): Promise<void> => {
    const stopped = server.stop()
    release()
    return stopped
  }
  try {
    await server.start()
    const sql = connect(databaseUrl)
    try {
      await prepareDatabase(sql, await loadHandlers())
    } finally {
      await sql.end({ timeout: 1 })
    }
    return stop
  } catch (error) {
    await stop()
    throw error
  }
}
