import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql, TransactionSql } from './db/client.ts'
import { InvalidOptionError, TransactionEndedError } from './errors.ts'

/** A handler's view of the group's transaction, which ends with the handler. */
export interface GuardedTransaction {
  readonly tx: TransactionSql
  /** From now on `tx` throws, and a statement that was made with it and not sent yet is refused. */
  end(): void
  /** False while a statement is unanswered, and when one failed: the transaction may be aborted. */
  isSound(): boolean
  /** What the first failed statement threw; undefined when none did. */
  failure(): unknown
  /** Has the server stop what the handler left running, and waits until it has. */
  cancel(): Promise<void>
}

/** What the guard uses of a query of postgres.js 3.4.9, which calls `handler` to send it when it is first awaited. */
interface Query extends Promise<unknown> {
  handler: (query: Query) => void
  readonly canceller: ((query: Query) => Promise<void>) | null
  readonly strings: ReadonlyArray<string>
  readonly args: ReadonlyArray<unknown>
  readonly options: { simple?: boolean }
  readonly active: boolean
  readonly cursorFn?: unknown
  readonly streaming?: boolean
  reject(error: unknown): void
}

/**
 * Wraps the group's session so that a handler that was given up, or forgot an await, can not slip a statement into
 * somebody else's savepoint, and none ends the transaction that settles.
 */
export function guardTransaction(session: Sql, handlerName: string): GuardedTransaction {
  const sent: Query[] = []
  let isOver = false
  let unanswered = 0
  let savepoints = 0
  let failed: { readonly error: unknown } | null = null

  const check = (): void => {
    if (isOver) throw endedError(handlerName)
  }
  const refusalOf = (query: Query): Error | null => {
    if (isOver) return endedError(handlerName)
    if (query.cursorFn !== undefined || query.streaming) return streamError(handlerName)
    return ending.test(beginningOf(query)) ? endingError(handlerName) : null
  }
  const send = (query: Query, original: Query['handler']): void => {
    const refusal = refusalOf(query)
    if (refusal !== null) {
      whenSettled(query, () => {})
      query.reject(refusal)
      return
    }
    query.options.simple = false // one statement a query: a second one could end the transaction
    sent.push(query)
    unanswered++
    whenSettled(query, (error) => {
      unanswered--
      failed ??= error
    })
    original(query)
  }
  const guard = <Made>(made: Made): Made => {
    if (isQuery(made)) {
      const original = made.handler
      made.handler = (query) => send(query, original)
    }
    return made
  }
  const unsafe = (...args: Parameters<Sql['unsafe']>): PromiseLike<unknown> => {
    check()
    return guard(session.unsafe(...args))
  }
  const savepoint = async (...args: [unknown, unknown?]): Promise<unknown> => {
    const inner = args.at(-1) as (tx: TransactionSql) => unknown
    const name = `handler_${++savepoints}`
    await unsafe(`savepoint ${name}`)
    try {
      const made = inner(tx)
      const result = await (Array.isArray(made) ? Promise.all(made) : made)
      await unsafe(`release savepoint ${name}`)
      return result
    } catch (error) {
      if (!isOver) await unsafe(`rollback to savepoint ${name}`)
      throw error
    }
  }
  const methods: Readonly<Record<PropertyKey, unknown>> = {
    unsafe,
    savepoint,
    notify: (channel: string, payload: string) => tx`select pg_notify(${channel}, ${payload})`,
    json: session.json,
    array: session.array,
    typed: session.typed,
    types: session.types,
  }
  const tx = new Proxy(session, {
    apply(target, _this, args: Parameters<Sql>) {
      check()
      return guard(Reflect.apply(target, undefined, args))
    },
    get(_target, key) {
      check()
      return methods[key]
    },
  }) as unknown as TransactionSql
  return {
    tx,
    end: () => {
      isOver = true
    },
    isSound: () => unanswered === 0 && failed === null,
    failure: () => failed?.error,
    cancel: async () => {
      const answered = Promise.all(
        sent.map((query) => new Promise<void>((resolve) => whenSettled(query, () => resolve()))),
      )
      // A request that arrives before its statement has begun stops nothing, and one may be lost: asks until all has ended.
      // Meanwhile nothing else is sent that a late one could stop.
      for (
        let pauseMs = firstCancelPauseMs;
        unanswered > 0;
        pauseMs = Math.min(2 * pauseMs, longestCancelPauseMs)
      ) {
        // not query.cancel(), which neither waits for the request to arrive nor tells when that fails
        const running = sent.filter((query) => query.active)
        await Promise.all(running.map((query) => query.canceller?.(query).catch(() => {})))
        await withinMs(pauseMs, answered)
      }
    },
  }
}

/** Between two requests to cancel: twice as long each time, up to the longest. */
const firstCancelPauseMs = 10
const longestCancelPauseMs = 500

/** Waits for something, but no longer than that. */
async function withinMs(ms: number, something: Promise<unknown>): Promise<void> {
  const waiting = new AbortController()
  const pause = sleep(ms, null, { signal: waiting.signal }).catch(() => {})
  await Promise.race([something, pause])
  waiting.abort()
}

/** The first words of a statement that ends a transaction; a rollback to a savepoint does not. */
const ending =
  /^(?:[\s;]|--[^\n]*\n|\/\*(?:[^*]|\*(?!\/))*\*\/)*(?:commit|end|abort|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b/i

/** The text that a query begins with, which may come from a fragment. */
function beginningOf({ strings, args }: Query): string {
  const [text = ''] = strings
  return text.trim() === '' && isQuery(args[0]) ? beginningOf(args[0]) : text
}

function isQuery(made: unknown): made is Query {
  return made instanceof Promise && typeof (made as Partial<Query>).handler === 'function'
}

/** Promise's own `then`: the query's would send it. What fails is noticed here, so nobody has to await it. */
function whenSettled(query: Query, settled: (failed: { readonly error: unknown } | null) => void): void {
  void Promise.prototype.then.call(
    query,
    () => settled(null),
    (error: unknown) => settled({ error }),
  )
}

function endedError(handlerName: string): TransactionEndedError {
  return new TransactionEndedError(
    `Handler ${handlerName} used its tx after it had ended: await every statement before you return.`,
  )
}

function endingError(handlerName: string): TransactionEndedError {
  return new TransactionEndedError(
    `Handler ${handlerName} tried to end its transaction, which settles the event too: return to have it committed, throw to have it rolled back, or use tx.savepoint.`,
  )
}

// Either would keep the connection to itself when the handler is given up halfway.
function streamError(handlerName: string): InvalidOptionError {
  return new InvalidOptionError(
    `Handler ${handlerName}: expected a statement that ends by itself, got a cursor or a COPY stream, which tx does not have.`,
  )
}
