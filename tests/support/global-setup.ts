import { readdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { postgresServer } from '../../infra/local/postgres-server.ts'
import { findProcess } from '../../infra/local/processes.ts'
import { migrate } from '../../src/db/migrate.ts'
import { startServer } from './server.ts'
import { withSession } from './session.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The server of this run, as a user that may create databases. */
    serverUrl: string
    /** The migrated database that each test file's own is cloned from. */
    templateDatabase: string
  }
}

/** What is lost when the machine fails does not matter here: nothing waits for the disk. */
const settings = {
  autovacuum_naptime: '5s',
  full_page_writes: 'off',
  max_prepared_transactions: 10,
  max_wal_size: '4GB',
  shared_buffers: '256MB',
  synchronous_commit: 'off',
}

/**
 * Before the tests: one Postgres 18 for the run, or the server at TEST_DATABASE_URL, and in it the template.
 * The returned function undoes it.
 */
export default async function setUp(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env['TEST_DATABASE_URL']
  if (given) return prepareTemplate(project, given)

  await removeLeftovers()
  // vitest ends without its teardown on a signal: the exit of this process ends the server (startServer).
  process.once('SIGTERM', () => process.exit(143))
  const server = await startServer({ settings })
  await prepareTemplate(project, server.url).catch(async (error: unknown) => {
    await server.destroy()
    throw error
  })
  return () => server.destroy()
}

async function prepareTemplate(project: TestProject, serverUrl: string): Promise<() => Promise<void>> {
  // A server that is kept may be used by two runs at once: the template's name says whose it is.
  const name = `loopless_template_${process.pid}`
  const dropTemplate = (): Promise<void> =>
    withSession(serverUrl, async (sql) => {
      await sql`drop database if exists ${sql(name)} with (force)`
    })
  await dropTemplate()
  await withSession(serverUrl, (sql) => sql`create database ${sql(name)} template template0`)
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  await withSession(url.href, (sql) => migrate(sql))
  project.provide('serverUrl', serverUrl)
  project.provide('templateDatabase', name)
  return dropTemplate
}

/** Stops and removes the servers of earlier runs that were killed before they could do it. */
async function removeLeftovers(): Promise<void> {
  for (const name of readdirSync(tmpdir())) {
    const pid = /^loopless-server-(\d+)-/.exec(name)?.[1]
    if (!pid || findProcess(Number(pid))) continue
    const directory = join(tmpdir(), name)
    const server = await postgresServer({ dataDirectory: join(directory, 'data'), port: 0 })
    await server.destroy()
    await rm(directory, { recursive: true, force: true })
  }
}
