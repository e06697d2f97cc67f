import { setTimeout as sleep } from 'node:timers/promises'
import { codeOf, connectionAdvice, isRefusedSignIn } from './connection-advice.ts'
import { database } from './environment.ts'

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
 * invocations the server ends its session, and the first statement afterwards finds out. Once more, too, when the
 * sign-in was refused and the password may have been rotated. Only for what may run twice.
 * @throws what the action throws; with advice, when it could not connect
 */
export async function reconnecting<Result>(action: () => PromiseLike<Result>): Promise<Result> {
  let mayRenew = true
  for (const pauseMs of [...pausesMs, null]) {
    try {
      return await action()
    } catch (error) {
      const isRenewed = isRefusedSignIn(error) && mayRenew && database.renewSignIn()
      if (isRenewed) mayRenew = false
      else if (pauseMs === null || !lostCodes.has(codeOf(error) ?? '')) throw advised(error)
      if (pauseMs !== null) await sleep(pauseMs)
    }
  }
  return action()
}

/** The same error, its message with what to do. */
function advised(error: unknown): unknown {
  const advice = connectionAdvice(error, database.settings)
  if (advice !== null && error instanceof Error) error.message = `${error.message}. ${advice}`
  return error
}
