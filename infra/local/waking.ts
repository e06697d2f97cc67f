import { type Sql, setWake, unsetWake } from '../../src/index.ts'
import { installAwsLambda } from './aws-lambda.ts'
import { startBridge } from './bridge.ts'
import type { Offline } from './offline.ts'

/** What has events handled. */
export interface Waking {
  /** Wakes of a poller so far; null where the database does not wake one. */
  readonly wakes: number | null
  /** To be called when something was published, and when something is due: for where the database does not wake. */
  published(): void
  wakeAt(at: Date): void
  stop(): Promise<void>
}

const wakeFunction = 'loopless-local-wake'
const pollFunction = 'loopless-local-poll'

/** SQLSTATEs of: has the extension itself, has a schema of that name, may not. */
const refusals = new Set(['55000', '42P06', '42501'])

/**
 * Has publishes in this database wake the local function, by the stand-in for aws_lambda; what somebody else has set
 * up is left as it is.
 *
 * @returns why it was left; undefined when publishes wake the local function
 */
export async function prepareWaking(sql: Sql): Promise<string | undefined> {
  const [target] = await sql<{ function: string }[]>`
    select function_arn as "function" from loopless.wake_target`
  if (target !== undefined && target.function !== wakeFunction) {
    return `Publishes wake ${target.function} in this database.`
  }
  try {
    await installAwsLambda(sql, 'at the commit')
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && refusals.has(String(error.code)))) throw error
    return error.message
  }
  await setWake(sql, new Date(), { functionArn: wakeFunction })
  return undefined
}

/** Undoes `prepareWaking`, as far as it was done here. */
export async function endWaking(sql: Sql): Promise<void> {
  const [target] = await sql<{ function: string }[]>`
    select function_arn as "function" from loopless.wake_target`
  if (target?.function === wakeFunction) await unsetWake(sql)
}

/** The bridge between the database's wakes and the functions here. */
export async function startWaking(
  databaseUrl: string,
  offline: Offline,
  onError: (error: unknown) => void,
): Promise<Waking> {
  const bridge = await startBridge({ databaseUrl, endpoint: offline.lambdaUrl, namesOnly: true, onError })
  return {
    get wakes() {
      return bridge.accepted.wakes
    },
    published() {},
    wakeAt: bridge.wakeAt,
    stop: bridge.stop,
  }
}

/** In place of the bridge, where the wakes of the database are somebody else's: polls when something was published from here. */
export function startPolling(offline: Offline, onError: (error: unknown) => void): Waking {
  let isAwaited = false
  let running: Promise<void> | undefined
  let timer: NodeJS.Timeout | undefined
  const run = async (): Promise<void> => {
    while (isAwaited) {
      isAwaited = false
      await offline.invoke(pollFunction)
    }
  }
  const published = (): void => {
    isAwaited = true
    running ??= run()
      .catch(onError)
      .finally(() => {
        running = undefined
      })
  }
  return {
    wakes: null,
    published,
    wakeAt(at) {
      clearTimeout(timer)
      timer = setTimeout(published, Math.min(Math.max(at.getTime() - Date.now(), 20), 60_000))
    },
    async stop() {
      clearTimeout(timer)
      isAwaited = false
      await running
    },
  }
}
