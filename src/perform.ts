import { InvalidEventError, InvalidOptionError } from './errors.ts'
import { type ReceivedEvent, type Validation, validatePayload } from './event.ts'
import type { BaseContext, BatchEvent, BatchResult, HandlerContext } from './handler.ts'
import { type LogSink, logFor } from './log.ts'
import { type Call, finishCall, planCall, type Run, startCall } from './run.ts'
import type { Watch } from './watch.ts'

/** What every call of a handler in one poll shares. */
export interface Scope {
  readonly now: Date
  readonly watch: Watch
  readonly log: LogSink
}

/**
 * Checks the payload, calls the handler and waits for its outcome or the end of its time. Never rejects; undefined
 * when the outcome is there at once.
 * @param extra what a kind of handler gets besides: `{ tx }`
 */
export function perform(run: Run, scope: Scope, extra?: object): Promise<void> | undefined {
  startCall(run)
  let result: unknown
  try {
    const checked = checkedEvent(run)
    const call = (event: ReceivedEvent): unknown => {
      if (run.state !== 'running') return // given up while its payload was checked
      return run.handler.run(event as never, contextOf(run, scope, extra) as never)
    }
    result = isThenable(checked) ? checked.then(call) : call(checked)
  } catch (error) {
    finishCall(run, 'failed', error)
    return undefined
  }
  if (!isThenable(result)) {
    finishCall(run, 'succeeded')
    return undefined
  }
  return untilEnded(run, scope.watch, result)
}

/** Calls a batch handler with the events of all its runs; each run gets an outcome of its own. Never rejects. */
export async function performBatch(runs: ReadonlyArray<Run>, scope: Scope, extra?: object): Promise<void> {
  const [first] = runs
  if (first === undefined) return
  const call = planCall(first.handler)
  startCall(call)
  runs.forEach(startCall)
  let result: unknown
  const answer = async (): Promise<void> => {
    const events = await fittingEvents(runs)
    if (call.state !== 'running' || events.length === 0) return
    result = await call.handler.run(events as never, batchContext(call, scope, extra) as never)
  }
  await untilEnded(call, scope.watch, answer())
  distribute(
    runs.filter((run) => run.state === 'running'),
    call,
    result,
  )
}

/** The events whose payloads fit; the runs of the others have failed. */
async function fittingEvents(runs: ReadonlyArray<Run>): Promise<BatchEvent<unknown>[]> {
  const events: BatchEvent<unknown>[] = []
  for (const run of runs) {
    try {
      const checked = checkedEvent(run)
      const event: ReceivedEvent = isThenable(checked) ? await checked : checked
      events.push({ ...event, attempt: run.attempt, idempotencyKey: idempotencyKeyOf(run) })
    } catch (error) {
      finishCall(run, 'failed', error)
    }
  }
  return events
}

/** The event as the handler gets it, its payload checked by the schema. Throws InvalidEventError when it does not fit. */
function checkedEvent(run: Run): ReceivedEvent | Promise<ReceivedEvent> {
  const { definition } = run.handler
  const { event } = run.item
  if (definition?.schema === undefined) return event
  const checked = validatePayload(definition, event.payload)
  const fit = (validation: Validation<unknown>): ReceivedEvent => {
    if (validation.issues !== undefined) throw misfit(run, validation.issues)
    return { ...event, payload: validation.value }
  }
  return isThenable(checked) ? Promise.resolve(checked).then(fit) : fit(checked)
}

function misfit(run: Run, issues: InvalidEventError['issues']): InvalidEventError {
  if (run.state === 'running') run.invalid = true
  const text = issues
    .map((issue) => `${issue.path.map(String).join('.') || '(payload)'}: ${issue.message}`)
    .join('; ')
  const { name } = run.item.event
  return new InvalidEventError(
    'INVALID_PAYLOAD',
    name,
    `The payload does not fit the schema of ${name}: ${text}`,
    { issues },
  )
}

/** Waits for a call's result or the end of its time, and records which. Never rejects. */
export function untilEnded(call: Call, watch: Watch, result: PromiseLike<unknown>): Promise<void> {
  return new Promise((resolve) => {
    call.finished = () => {
      watch.remove(call)
      resolve()
    }
    watch.add(call)
    Promise.resolve(result).then(
      () => finishCall(call, 'succeeded'),
      (error: unknown) => finishCall(call, 'failed', error),
    )
  })
}

function distribute(runs: ReadonlyArray<Run>, call: Call, result: unknown): void {
  const problem = call.state === 'failed' ? call : invalidResult(runs, result)
  const failed = problem === null ? ((result as BatchResult | undefined)?.failed ?? []) : []
  const failures = new Map(failed.map(({ id, error }) => [String(id), error]))
  for (const run of runs) {
    const { id } = run.item.event
    if (problem !== null) finishCall(run, 'failed', problem.error)
    else if (failures.has(id)) finishCall(run, 'failed', failures.get(id))
    else finishCall(run, 'succeeded')
  }
}

/** A return value that nobody can read is a failure of all: it may mean that some failed. */
function invalidResult(runs: ReadonlyArray<Run>, result: unknown): { error: unknown } | null {
  if (result === undefined) return null
  const failed = (result as Partial<BatchResult> | null)?.failed
  const name = runs[0]?.handler.name
  if (!Array.isArray(failed)) {
    return {
      error: new InvalidOptionError(
        `Batch handler ${name}: expected it to return nothing or { failed: [{ id, error }] }, got ${result === null ? 'null' : typeof result}.`,
      ),
    }
  }
  const ids = new Set(runs.map((run) => run.item.event.id))
  const named = failed.map((one: { id?: unknown } | null | undefined) => String(one?.id))
  const stranger = named.find((id) => !ids.has(id))
  if (stranger === undefined) return null
  return {
    error: new InvalidOptionError(
      `Batch handler ${name}: expected each id in failed to be one of the events it got, got ${stranger}.`,
    ),
  }
}

function idempotencyKeyOf(run: Run): string {
  return `${run.item.event.id}:${run.handler.name}`
}

function signalOf(call: Call): AbortSignal {
  call.abort ??= new AbortController()
  if (call.state === 'failed') call.abort.abort(call.error) // it was given up before it asked
  return call.abort.signal
}

// Getters: a signal costs more than calling a handler that does not look at it.
function contextOf(run: Run, scope: Scope, extra?: object): HandlerContext {
  const context = {
    attempt: run.attempt,
    now: scope.now,
    headers: run.item.event.headers,
    get idempotencyKey() {
      return idempotencyKeyOf(run)
    },
    get signal() {
      return signalOf(run)
    },
    get log() {
      return logFor(scope.log, {
        handler: run.handler.name,
        event: run.item.event.name,
        eventId: run.item.event.id,
        attempt: run.attempt,
      })
    },
  }
  return extra === undefined ? context : withExtra(context, extra)
}

function batchContext(call: Call, scope: Scope, extra?: object): BaseContext {
  const context = {
    now: scope.now,
    get signal() {
      return signalOf(call)
    },
    get log() {
      return logFor(scope.log, { handler: call.handler.name })
    },
  }
  return extra === undefined ? context : withExtra(context, extra)
}

function withExtra<Context extends object>(context: Context, extra: object): Context {
  return Object.defineProperties(context, Object.getOwnPropertyDescriptors(extra))
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return (
    typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function'
  )
}
