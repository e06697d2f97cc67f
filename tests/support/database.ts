import { randomUUID } from 'node:crypto'
import postgres from 'postgres'
import { afterAll, inject } from 'vitest'
import { withSession } from './session.ts'

/** A database of a test file's own, with the schema migrated and no rows. */
export interface TestDatabase {
  /** For clients of any kind. */
  url: string
  /** A pool of at most 10 connections. */
  sql: postgres.Sql
  /** A further client, e.g. with `{ max: 1 }` for a session of its own. Closed with the rest. */
  connect(options?: postgres.Options<Record<string, never>>): postgres.Sql
}

/**
 * Clones the template for the calling test file (about 30 ms) and closes and drops the clone when the file is
 * done. Call it at the top level of the file or of a `describe`:
 *
 *     const { sql } = await testDatabase()
 *
 * @param template `template0` for one without anything
 */
export async function testDatabase(template = inject('templateDatabase')): Promise<TestDatabase> {
  const serverUrl = inject('serverUrl')
  const name = `loopless_${randomUUID().replaceAll('-', '')}`
  const url = new URL(serverUrl)
  url.pathname = `/${name}`

  const clients: postgres.Sql[] = []
  const connect: TestDatabase['connect'] = (options) => {
    const client = postgres(url.href, { onnotice: () => {}, ...options })
    clients.push(client)
    return client
  }

  await withSession(serverUrl, async (sql) => {
    await sql`create database ${sql(name)} template ${sql(template)}`
  })
  afterAll(async () => {
    await Promise.all(clients.map((client) => client.end({ timeout: 1 })))
    await withSession(serverUrl, async (sql) => {
      await sql`drop database ${sql(name)} with (force)`
    })
  })
  return { url: url.href, sql: connect(), connect }
}
