import type { Sql, TransactionSql } from './db/client.ts'
import { TransactionEndedError } from './errors.ts'

/** A handler's view of the group's transaction, which ends with the handler. */
export interface GuardedTransaction {
  readonly tx: TransactionSql
  /** From now on `tx` throws. */
  end(): void
  /** Asks the server to stop what the handler left running. */
  cancel(): Promise<void>
}

interface SentQuery {
  readonly active: boolean
  cancel(): Promise<void> | undefined
}

/**
 * Wraps the group's session so that a handler that was given up, or forgot an await, can not slip a statement into
 * somebody else's savepoint.
 */
export function guardTransaction(session: Sql, handlerName: string): GuardedTransaction {
  const sent: SentQuery[] = []
  let isOver = false
  let savepoints = 0
  const check = (): void => {
    if (isOver)
      throw new TransactionEndedError(
        `Handler ${handlerName} used its tx after it had ended: await every statement before you return.`,
      )
  }
  const keep = <Value>(made: Value): Value => {
    if (typeof (made as Partial<SentQuery> | null)?.cancel === 'function') sent.push(made as SentQuery)
    return made
  }
  const unsafe = (...args: Parameters<Sql['unsafe']>): unknown => {
    check()
    return keep(session.unsafe(...args))
  }
  const savepoint = async (...args: [unknown, unknown?]): Promise<unknown> => {
    check()
    const inner = (args.length === 1 ? args[0] : args[1]) as (tx: TransactionSql) => unknown
    const name = `handler_${++savepoints}`
    await session.unsafe(`savepoint ${name}`)
    try {
      const result = await inner(tx)
      await session.unsafe(`release savepoint ${name}`)
      return result
    } catch (error) {
      if (!isOver) await session.unsafe(`rollback to savepoint ${name}`)
      throw error
    }
  }
  const tx = new Proxy(session, {
    apply(target, _this, args: Parameters<Sql>) {
      check()
      return keep(Reflect.apply(target, undefined, args))
    },
    get(target, key) {
      check()
      if (key === 'savepoint') return savepoint
      if (key === 'unsafe') return unsafe
      if (key === 'release' || key === 'begin') return undefined
      return Reflect.get(target, key)
    },
  }) as unknown as TransactionSql
  return {
    tx,
    end: () => {
      isOver = true
    },
    cancel: async () => {
      await Promise.all(sent.filter((query) => query.active).map((query) => query.cancel()))
    },
  }
}
