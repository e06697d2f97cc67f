import { connect } from '../../src/index.ts'
import { type Invocation, lambdaAt } from './lambda.ts'

export interface BridgeOptions {
  /** Where the stand-in aws_lambda.sql is installed; no pooler of transactions, because the bridge listens there. */
  readonly databaseUrl: string
  /** Where Lambda is, for example serverless-offline's port 3002, or LocalStack. */
  readonly endpoint: string
  /** True for serverless-offline, which knows functions by name: an ARN is cut down to its name. Default false. */
  readonly namesOnly?: boolean
  /** Requests to Lambda at once; others wait. Default 4: a hundred at once can end serverless-offline. */
  readonly concurrency?: number
  /** Gets what went wrong; the bridge goes on. */
  readonly onError: (error: unknown) => void
}

/** Makes real invocations of what the stand-in for aws_lambda sends. */
export interface Bridge {
  /** Invocations that Lambda has accepted so far: wakes of a poller, and others. */
  readonly accepted: { readonly wakes: number; readonly others: number }
  /**
   * Wakes a poller at a time by the database's clock, unless one is awake then: for what is due before a schedule
   * polls. Of several times the earliest holds; the poller that it wakes tells the next.
   */
  wakeAt(at: Date): void
  /** Ends what is under way, takes no more, and disconnects. */
  stop(): Promise<void>
}

const wakePayload = '{"loopless":"wake"}'

/**
 * Listens, and returns when it does. Each time it begins to, also after it had lost its connection, it wakes a poller:
 * what was sent while nobody listened is gone.
 *
 * Wakes of a burst come to one invocation: those that wait their turn here are one, and of those that follow
 * `loopless.begin_waking` knows that a poller is on its way.
 *
 * @throws when the database cannot be reached
 */
export async function startBridge(options: BridgeOptions): Promise<Bridge> {
  const { databaseUrl, endpoint, namesOnly = false, concurrency = 4, onError } = options
  const sql = connect(databaseUrl, { applicationName: 'aws_lambda bridge' })
  const lambda = lambdaAt(endpoint, { namesOnly })
  const queue = startQueue(concurrency, onError)
  const accepted = { wakes: 0, others: 0 }
  const waitingWakes = new Set<string>()
  let clockOffsetMs = 0

  const wake = async (invocation: Invocation): Promise<void> => {
    await lambda.invoke(invocation)
    accepted.wakes++
  }
  const beginWaking = async (): Promise<boolean> => {
    const [row] = await sql<{ begun: boolean }[]>`select loopless.begin_waking() as begun`
    return row?.begun ?? false
  }
  const readTarget = async (): Promise<Invocation | undefined> => {
    const [row] = await sql<{ functionName: string; region: string | null; now: Date }[]>`
      select function_arn as "functionName", region, clock_timestamp() as now from loopless.wake_target`
    if (row === undefined) return undefined
    clockOffsetMs = row.now.getTime() - Date.now()
    return {
      functionName: row.functionName,
      payload: wakePayload,
      ...(row.region !== null && { region: row.region }),
    }
  }
  const wakeTarget = async (isLost: boolean): Promise<void> => {
    const target = await readTarget()
    if (target === undefined) return
    const isAsleep = await beginWaking()
    if (isAsleep || isLost) await wake(target)
  }

  const receive = (text: string): void => {
    const invocation = parse(text, onError)
    if (invocation === undefined) return
    if (invocation.payload !== wakePayload) {
      queue.add(async () => {
        await lambda.invoke(invocation)
        accepted.others++
      })
      return
    }
    const { functionName, region, qualifier } = invocation
    const key = JSON.stringify([functionName, region, qualifier])
    if (waitingWakes.has(key)) return
    waitingWakes.add(key)
    queue.add(async () => {
      waitingWakes.delete(key)
      if (await beginWaking()) await wake(invocation)
    })
  }

  const timer = startTimer(() => queue.add(() => wakeTarget(false)))
  try {
    // A wake that was begun may have been lost with the connection: the mark proves nothing then.
    await sql.listen('aws_lambda', receive, () => queue.add(() => wakeTarget(true)))
  } catch (error) {
    await sql.end({ timeout: 1 })
    throw error
  }
  return {
    accepted,
    wakeAt: (at) => timer.set(at.getTime() - clockOffsetMs),
    async stop() {
      timer.clear()
      await queue.close()
      await sql.end({ timeout: 1 })
      lambda.close()
    },
  }
}

function parse(text: string, onError: (error: unknown) => void): Invocation | undefined {
  try {
    const invocation = JSON.parse(text) as Partial<Invocation> | null
    if (typeof invocation?.functionName === 'string') return invocation as Invocation
  } catch {
    // said below
  }
  onError(new Error(`Expected an invocation on the channel aws_lambda, got ${text.slice(0, 200)}`))
  return undefined
}

interface Queue {
  add(work: () => Promise<void>): void
  /** Drops what waits, and waits for what is under way. */
  close(): Promise<void>
}

function startQueue(concurrency: number, onError: (error: unknown) => void): Queue {
  const waiting: (() => Promise<void>)[] = []
  const running = new Set<Promise<void>>()
  let isClosed = false
  const startNext = (): void => {
    while (running.size < concurrency) {
      const work = waiting.shift()
      if (work === undefined) return
      const run = work()
        .catch(onError)
        .finally(() => {
          running.delete(run)
          startNext()
        })
      running.add(run)
    }
  }
  return {
    add(work) {
      if (isClosed) return
      waiting.push(work)
      startNext()
    },
    async close() {
      isClosed = true
      waiting.length = 0
      while (running.size > 0) await Promise.all(running)
    },
  }
}

function startTimer(ring: () => void): { set(atMs: number): void; clear(): void } {
  let timer: NodeJS.Timeout | undefined
  let nextMs = Number.POSITIVE_INFINITY
  const clear = (): void => {
    clearTimeout(timer)
    nextMs = Number.POSITIVE_INFINITY
  }
  return {
    set(atMs) {
      if (atMs >= nextMs) return
      clear()
      nextMs = atMs
      // Further ahead than a timer reaches, a schedule comes first.
      const delayMs = Math.min(Math.max(atMs - Date.now(), 0), 2 ** 31 - 1)
      timer = setTimeout(() => {
        clear()
        ring()
      }, delayMs)
    },
    clear,
  }
}
