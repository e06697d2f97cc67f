import { setTimeout as sleep } from 'node:timers/promises'
import { DatabaseError } from '../../src/index.ts'

const lostCodes = new Set([
  'CONNECTION_CLOSED',
  'CONNECTION_ENDED',
  'CONNECTION_DESTROYED',
  'ECONNRESET',
  'EPIPE',
  '57P01',
])

/** Pauses before the further tries: the driver may take a moment to see that its socket is closed. */
const pausesMs = [20, 200]

/**
 * Runs an action, and again if its connection turned out to be lost: while an environment is frozen between two
 * invocations the server ends its session, and the first statement afterwards finds out. Only for what may run twice.
 */
export async function reconnecting<Result>(action: () => PromiseLike<Result>): Promise<Result> {
  for (const pauseMs of pausesMs) {
    try {
      return await action()
    } catch (error) {
      if (!isLost(error)) throw error
      await sleep(pauseMs)
    }
  }
  return action()
}

function isLost(error: unknown): boolean {
  if (error instanceof DatabaseError) return error.sqlState !== null && lostCodes.has(error.sqlState)
  return error instanceof Error && 'code' in error && lostCodes.has(String(error.code))
}
