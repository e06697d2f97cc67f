import type { Sql } from '../../src/index.ts'
import { type Database, openDatabase } from './database.ts'
import { readDatabaseSettings } from './database-settings.ts'

/** The database of this environment (one running copy of a function), kept from invocation to invocation. */
export const database: Database = openDatabase(readDatabaseSettings(process.env), {
  applicationName: process.env['AWS_LAMBDA_FUNCTION_NAME'] ?? 'loopless',
})

/** Its client. */
export const sql: Sql = database.sql

const stopping = new AbortController()
process.once('SIGTERM', () => stopping.abort())

/** Aborted when this environment is asked to end. */
export const stopSignal: AbortSignal = stopping.signal
