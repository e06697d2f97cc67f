import type { Sql } from './db/client.ts'
import { databaseError, isConnectionError } from './db/database-error.ts'
import { type Durations, expectedMs } from './durations.ts'
import { TimeoutError } from './errors.ts'
import { guardTransaction } from './guard-transaction.ts'
import { perform, performBatch, type Scope } from './perform.ts'
import { type Run, resetRun } from './run.ts'

/** One call of a transactional handler: an event, or all events of a batch handler. */
type Unit = ReadonlyArray<Run>

/** What a group needs besides its units. */
export interface GroupOptions {
  readonly token: string
  readonly scope: Scope
  readonly durations: Durations
  /** Sends the statement that settles everything; runs in the group's transaction. */
  settle(session: Sql): PromiseLike<unknown>
}

/**
 * Runs transactional handlers one after the other in one transaction that also settles: a group commit. First without
 * savepoints. When one fails, everything is rolled back; it keeps its failure, and the others run again, each in a
 * savepoint, so that they commit together whatever fails among them. What does not fit before the end stays planned.
 * @throws DatabaseError when the transaction could not be carried out; nothing of it happened then,
 * unless the connection was lost during the commit
 */
export async function runGroup(sql: Sql, units: ReadonlyArray<Unit>, options: GroupOptions): Promise<void> {
  const session = await sql.reserve().catch((error: unknown) => {
    throw databaseError(error)
  })
  try {
    if (await runOnce(session, units, options)) return
    const again = units.filter((unit) => !hasFinalFailure(unit))
    for (const unit of again) unit.forEach(resetRun)
    await runWithSavepoints(session, again, options)
  } catch (error) {
    await session`rollback`.catch(() => {}) // a connection that was lost has rolled back by itself
    throw databaseError(error)
  } finally {
    session.release()
  }
}

/** @returns false when it was rolled back because a handler failed */
async function runOnce(session: Sql, units: ReadonlyArray<Unit>, options: GroupOptions): Promise<boolean> {
  begin(session, units, options)
  for (const unit of units) {
    if (!mayStart(unit, options)) break
    await runUnit(session, unit, options)
    if (!hasFailed(unit)) continue
    await session`rollback`
    return false
  }
  try {
    await options.settle(session)
  } catch (error) {
    if (sqlStateOf(error) !== '25P02') throw error
    // a handler swallowed the failure of its own statement: the savepoints will tell which
    await session`rollback`
    return false
  }
  await session`commit`
  return true
}

async function runWithSavepoints(
  session: Sql,
  units: ReadonlyArray<Unit>,
  options: GroupOptions,
): Promise<void> {
  begin(session, units, options)
  for (const unit of units) {
    if (!mayStart(unit, options)) break
    send(session, 'savepoint loopless_unit')
    await runUnit(session, unit, options)
    if (!hasFailed(unit)) {
      try {
        await session`release savepoint loopless_unit`
        continue
      } catch (error) {
        if (isConnectionError(error)) throw error
        for (const run of unit) Object.assign(run, { state: 'failed', error })
      }
    }
    await session`rollback to savepoint loopless_unit`
    await session`release savepoint loopless_unit`
  }
  await options.settle(session)
  await session`commit`
}

/** Room for the settling beside what handlers may take; `cancel` ends a handler's statement before that. */
const settleTimeoutMs = 10_000

function begin(session: Sql, units: ReadonlyArray<Unit>, { token }: GroupOptions): void {
  send(session, 'begin')
  const longestSeconds = Math.max(0, ...units.map((unit) => unit[0]?.handler.timeoutSeconds ?? 0))
  session`select loopless.begin_group(${token}, ${Math.ceil(longestSeconds * 1000) + settleTimeoutMs})`.catch(
    () => {},
  )
}

/** Sends without waiting: what fails here shows in the next statement, because the transaction is aborted or gone. */
function send(session: Sql, statement: string): void {
  session.unsafe(statement).catch(() => {})
}

async function runUnit(session: Sql, unit: Unit, { scope }: GroupOptions): Promise<void> {
  const [first] = unit
  if (first === undefined) return
  const guard = guardTransaction(session, first.handler.name)
  const extra = { tx: guard.tx }
  if (first.handler.batch) await performBatch(unit, scope, extra)
  else await perform(first, scope, extra)
  guard.end()
  if (unit.some((run) => run.error instanceof TimeoutError)) await guard.cancel().catch(() => {})
}

function mayStart(unit: Unit, { scope, durations }: GroupOptions): boolean {
  const [first] = unit
  return first === undefined || scope.watch.mayStart(expectedMs(durations, first.handler))
}

/** A batch handler that names the events that failed has succeeded with the others. */
function hasFailed(unit: Unit): boolean {
  return (
    unit.some((run) => run.state === 'failed') &&
    (unit.length === 1 || unit.every((run) => run.state === 'failed'))
  )
}

/** Failures that came from what others did in the transaction deserve another run in this poll. */
const innocentStates: ReadonlySet<string> = new Set(['25P02', '40001', '40P01'])

function hasFinalFailure(unit: Unit): boolean {
  return (
    hasFailed(unit) &&
    unit.every((run) => !innocentStates.has(sqlStateOf(run.error) ?? '') && !isConnectionError(run.error))
  )
}

function sqlStateOf(error: unknown): string | null {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : null
}
