import { setTimeout } from 'node:timers/promises'
import type { Work } from './claim.ts'
import type { Sql } from './db/client.ts'
import { databaseError, isConnectionError } from './db/database-error.ts'
import { LeaseLostError } from './errors.ts'
import { isPlainSuccess, type Outcomes } from './outcome.ts'

/** What is settled: everything under one lease. */
export interface Settlement {
  readonly work: Work
  readonly outcomes: Outcomes
  readonly now: Date
}

/**
 * The one statement that settles, sent at once, ahead of whatever is sent later; in the group's transaction it also
 * checks that this is still the one.
 */
export function settleStatement(
  sql: Sql,
  { work, outcomes, now }: Settlement,
  inGroup: boolean,
): PromiseLike<unknown> {
  const exceptions = isPlainSuccess(outcomes) ? null : JSON.stringify(outcomes)
  return sql`
    select loopless.settle(${now}, ${work.token}, ${work.batchId}, ${exceptions}::text::json, ${inGroup})`.execute()
}

/** Before each further try: a driver may find out that its connection is lost only by the next statement. */
const pausesMs = [10, 100, 500]

/**
 * Settles in a transaction of its own. When the connection is lost, nobody knows whether the commit was carried
 * out: it is tried again, and the lease tells.
 * @throws LeaseLostError, DatabaseError
 */
export async function settle(sql: Sql, settlement: Settlement): Promise<void> {
  try {
    await settleStatement(sql, settlement, false)
  } catch (error) {
    await settleAgain(sql, settlement, error)
  }
}

async function settleAgain(sql: Sql, settlement: Settlement, first: unknown): Promise<void> {
  let problem = first
  for (const pauseMs of pausesMs) {
    if (!isConnectionError(problem)) break
    await setTimeout(pauseMs)
    try {
      await settleStatement(sql, settlement, false)
      return
    } catch (error) {
      problem = error
    }
  }
  const named = databaseError(problem)
  if (named instanceof LeaseLostError && problem !== first && (await isSettled(sql, settlement.work))) return
  throw named
}

/** Whether this very lease has settled its batch: then the first try was carried out. */
async function isSettled(sql: Sql, work: Work): Promise<boolean> {
  if (work.batchId === null) return false
  const rows = await sql`
    select 1 as settled from loopless.batch
    where id = ${work.batchId} and lease = ${work.token} and settled_at is not null`.catch(
    (error: unknown) => {
      throw databaseError(error)
    },
  )
  return rows.length > 0
}
