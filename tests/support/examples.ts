import { readFile } from 'node:fs/promises'
import { afterAll } from 'vitest'
import { webhookKinds } from '../../infra/local/webhooks.ts'
import { connect, defineEvent, publish, type Sql } from '../../src/index.ts'
import { testDatabase } from './database.ts'

/** A database with the tables of the example handlers too, and a poller's client for it. */
export interface ExampleDatabase {
  url: string
  sql: Sql
  /** Publishes a payload as the webhook does, without a schema; returns the event's id. */
  publish(name: string, payload: unknown): Promise<string>
}

/** Call it at the top level of a test file. */
export async function exampleDatabase(): Promise<ExampleDatabase> {
  const { url } = await testDatabase()
  const sql = connect(url)
  // Run before the database is dropped: the last hook first.
  afterAll(() => sql.end({ timeout: 1 }))
  await sql.unsafe(await readFile(new URL('../../functions/schema.sql', import.meta.url), 'utf8'))
  return {
    url,
    sql,
    publish: (name, payload) => sql.begin((tx) => publish(tx, defineEvent(name)(payload))),
  }
}

/** The real payloads of a webhook: `webhooks('issues', 'opened')`. */
export function webhooks<Payload extends object>(event: string, action?: string): Payload[] {
  const payloads = (webhookKinds.find(({ name }) => name === event)?.examples ?? []) as (Payload & {
    action?: string
  })[]
  return payloads.filter((payload) => payload.action === action)
}
