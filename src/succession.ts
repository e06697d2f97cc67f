import type { AttendOptions } from './attend-options.ts'
import type { Sql } from './db/client.ts'
import { goIdle } from './idle.ts'

/** Kept free to invoke a successor, at most a fifth of the whole time. */
const reserveMs = 2_000

/** Until when a poller may handle that has to invoke a successor before its deadline. */
export function deadlineBeforeSuccession(deadline: Date, now: Date): Date {
  return new Date(deadline.getTime() - Math.min(reserveMs, (deadline.getTime() - now.getTime()) / 5))
}

/**
 * Hands over to one successor, on which publishers rely already: the mark is ahead. When it cannot be invoked, nobody is
 * awake, and the next wake or the schedule goes on.
 * @returns whether it is on its way
 * @throws DatabaseError, SchemaMissingError
 */
export async function invokeSuccessor(
  sql: Sql,
  now: Date,
  invoke: NonNullable<AttendOptions['invoke']>,
): Promise<boolean> {
  try {
    await invoke('continue')
    return true
  } catch {
    await goIdle(sql, now, false) // whoever invokes has said why
    return false
  }
}
