import type { Sql } from './db/client.ts'
import { databaseError, isConnectionError } from './db/database-error.ts'
import { type Durations, expectedMs } from './durations.ts'
import { TimeoutError, TransactionEndedError } from './errors.ts'
import { type GuardedTransaction, guardTransaction } from './guard-transaction.ts'
import { perform, performBatch, type Scope, untilEnded } from './perform.ts'
import { type Call, planCall, type Run, resetRun } from './run.ts'

/** One call of a transactional handler: an event, or all events of a batch handler. */
type Unit = ReadonlyArray<Run>

/** What a group needs besides its units. */
export interface GroupOptions {
  readonly token: string
  readonly scope: Scope
  readonly durations: Durations
  /** The session is a pooler's (`prepare: false`), and not ours to reset. */
  readonly isPooled: boolean
  /** Milliseconds that handlers took, counted up. */
  readonly spent: { handle: number }
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
    let again = units
    do {
      again = again.filter((unit) => !hasFinalFailure(unit))
      for (const unit of again) unit.forEach(resetRun)
    } while (!(await runWithSavepoints(session, again, options)))
  } catch (error) {
    await session`rollback`.catch(() => {}) // a connection that was lost has rolled back by itself
    throw databaseError(error)
  } finally {
    session.release()
  }
}

/** @returns false when it was rolled back because of something that a handler did */
async function runOnce(session: Sql, units: ReadonlyArray<Unit>, options: GroupOptions): Promise<boolean> {
  const begun = begin(session, units, options)
  for (const unit of units) {
    if (!mayStart(unit, options)) break
    await runUnit(session, unit, options)
    if (!hasFailed(unit)) continue
    await begun
    await session`rollback`
    return false
  }
  try {
    await options.settle(session)
  } catch (error) {
    if (isConnectionError(error) || sqlStateOf(error) === leaseLost) throw error
    await session`rollback` // the savepoints will tell who ended it, or left it to a role that may not settle
    return false
  }
  try {
    await commit(session, options)
    return true
  } catch (error) {
    if (isConnectionError(error)) throw error
    return false // a deferred constraint: the savepoints will tell whose
  }
}

/** @returns false when a handler ended the transaction: it keeps that failure, and the others must run again */
async function runWithSavepoints(
  session: Sql,
  units: ReadonlyArray<Unit>,
  options: GroupOptions,
): Promise<boolean> {
  const begun = begin(session, units, options)
  for (const unit of units) {
    if (!mayStart(unit, options)) break
    send(session, 'savepoint loopless_unit')
    await runUnit(session, unit, options)
    if (!hasFailed(unit)) await releaseSavepoint(session, unit, options)
    if (!hasFailed(unit)) continue
    await begun
    try {
      await session.unsafe('rollback to savepoint loopless_unit; release savepoint loopless_unit')
    } catch (error) {
      if (isConnectionError(error)) throw error
      for (const run of unit) run.error = endedByHandler(run)
      await session`rollback`
      return false
    }
  }
  await options.settle(session)
  await commit(session, options)
  return true
}

/**
 * Keeps what a handler did, unless it fails a check that would otherwise come too late to tell who it was: whether
 * this is still the group's transaction, and deferred constraints. Their check is rolled back, so that they stay deferred.
 */
async function releaseSavepoint(session: Sql, unit: Unit, { token }: GroupOptions): Promise<void> {
  const [group, constraints] = await Promise.allSettled([
    session`select loopless.check_group(${token})`.execute(),
    session
      .unsafe(`
      savepoint loopless_check;
      set constraints all immediate;
      rollback to savepoint loopless_check;
      release savepoint loopless_unit`)
      .execute(),
  ])
  const failed = group.status === 'rejected' ? group : constraints
  if (failed.status === 'fulfilled') return
  if (isConnectionError(failed.reason)) throw failed.reason
  fail(unit, failed.reason)
  if (failed === group) for (const run of unit) run.error = endedByHandler(run)
}

/**
 * Commits, and undoes what handlers have set for the session: the claims and handlers after this must not feel it.
 */
async function commit(session: Sql, { isPooled }: GroupOptions): Promise<void> {
  const committed = session`commit`.execute()
  if (isPooled) await committed
  else await Promise.all([committed, session.unsafe('reset role; reset all').execute()])
}

/** Room for the settling beside what handlers may take; `cancel` ends a handler's statement before that. */
const settleTimeoutMs = 10_000

// execute(): Promise.all alone would send a turn later, behind what is sent next
/** Sends without waiting. @returns rejects when it failed: then what fails in the group is no handler's fault */
function begin(session: Sql, units: ReadonlyArray<Unit>, { token }: GroupOptions): Promise<unknown> {
  const longestSeconds = Math.max(0, ...units.map((unit) => unit[0]?.handler.timeoutSeconds ?? 0))
  const timeoutMs = Math.ceil(longestSeconds * 1000) + settleTimeoutMs
  const begun = Promise.all([
    session.unsafe('begin').execute(),
    session`select loopless.begin_group(${token}, ${timeoutMs})`.execute(),
  ])
  begun.catch(() => {})
  return begun
}

/** Sends without waiting: what fails here shows in the next statement, because the transaction is aborted or gone. */
function send(session: Sql, statement: string): void {
  session.unsafe(statement).catch(() => {})
}

async function runUnit(session: Sql, unit: Unit, { scope, spent }: GroupOptions): Promise<void> {
  const [first] = unit
  if (first === undefined) return
  const beganMs = performance.now()
  const guard = guardTransaction(session, first.handler.name)
  const extra = { tx: guard.tx }
  if (first.handler.batch) await performBatch(unit, scope, extra)
  else await new Promise((ended) => perform(first, scope, ended, extra))
  guard.end()
  spent.handle += performance.now() - beganMs
  if (!hasFailed(unit) && !guard.isSound()) await probe(session, unit, first, guard, scope)
  if (hasFailed(unit)) await guard.cancel()
}

/**
 * Waits for the statements that a handler did not wait for, as a part of its time. One that failed is the handler's
 * failure, though it may have swallowed it: unless that was in a savepoint, the transaction is aborted.
 */
async function probe(
  session: Sql,
  unit: Unit,
  first: Run,
  guard: GuardedTransaction,
  { watch }: Scope,
): Promise<void> {
  const call: Call = { ...planCall(first.handler), state: 'running', beganMs: first.beganMs }
  await untilEnded(call, watch, session`select 1`)
  if (call.state !== 'failed') return
  fail(unit, call.error instanceof TimeoutError ? call.error : (guard.failure() ?? call.error))
}

function fail(unit: Unit, error: unknown): void {
  for (const run of unit) if (run.state === 'succeeded') Object.assign(run, { state: 'failed', error })
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

/**
 * Failures that may come from what others did deserve another run in this poll: serialization, deadlock; and what is
 * not there or not allowed, when a handler before has left its role, search_path or read-only mode behind.
 */
const innocentStates = /^(40001|40P01|42...|3F000|25006)$/

function hasFinalFailure(unit: Unit): boolean {
  return hasFailed(unit) && !unit.some((run) => innocentStates.test(sqlStateOf(run.error) ?? ''))
}

/** What `loopless.settle` raises when another poll has the events. */
const leaseLost = 'LL010'

function endedByHandler({ handler, error }: Run): TransactionEndedError {
  return new TransactionEndedError(
    `Handler ${handler.name} ended its transaction or savepoint, or changed its role or settings, so nothing could be settled in it.`,
    { cause: error },
  )
}

/** Of the error, or of its cause: query builders wrap what the driver threw. */
function sqlStateOf(error: unknown): string | null {
  const { code, cause } = (error ?? {}) as { code?: unknown; cause?: { code?: unknown } | null }
  const state = typeof code === 'string' ? code : cause?.code
  return typeof state === 'string' ? state : null
}
