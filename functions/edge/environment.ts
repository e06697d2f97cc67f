import type { Sql } from '../../src/index.ts'
import { type Database, openDatabase } from './database.ts'
import { readConnectTimeoutSeconds, readDatabaseSettings } from './database-settings.ts'

/** How long a session of an earlier invocation may take to answer: less than a second. One that works needs milliseconds. */
const answerMs = 800

/**
 * The database of this environment (one running copy of a function), kept from invocation to invocation, and replaced
 * when it does not answer any more.
 */
export let database: Database = open()

/** Its client. Not kept by anybody else: it is replaced with the database. */
export let sql: Sql = database.sql

let isUsed = false

/**
 * Begins an invocation. While an environment is frozen, what lies between it and the server may forget their
 * connection and tell neither: the first statement would wait for longer than any function may. So a session that was
 * kept is asked first, and given up if it says nothing.
 */
export async function beginInvocation(): Promise<void> {
  if (isUsed && !(await answers(sql))) {
    void sql.end({ timeout: 0 })
    database = open()
    sql = database.sql
  }
  isUsed = true
}

function open(): Database {
  return openDatabase(readDatabaseSettings(process.env), {
    applicationName: process.env['AWS_LAMBDA_FUNCTION_NAME'] ?? 'loopless',
    connectTimeoutSeconds: readConnectTimeoutSeconds(process.env),
  })
}

/** An error is an answer too: the driver knows that the session was lost, and opens another. */
async function answers(client: Sql): Promise<boolean> {
  const { promise: isSilent, resolve } = Promise.withResolvers<false>()
  // In a turn of its own: what came while this process itself was held up is read before.
  const timer = setTimeout(() => setImmediate(resolve, false), answerMs)
  const hasAnswered = client`select`.then(
    () => true,
    () => true,
  )
  return Promise.race([hasAnswered, isSilent]).finally(() => clearTimeout(timer))
}

const stopping = new AbortController()
process.once('SIGTERM', () => stopping.abort())

/** Aborted when this environment is asked to end. */
export const stopSignal: AbortSignal = stopping.signal
