/** What announce-handled.ts tells of a run of a handler. */
export interface HandledRun {
  readonly eventId: string
  readonly eventName: string
  readonly handler: string
  readonly outcome: 'succeeded' | 'failed'
  /** By this machine's clock; null: it was not called, because the payload did not fit. */
  readonly beganAtMs: number | null
}

/** Runs as they are told of, until somebody takes them. */
export interface HandledLog {
  /** Reads a line of serverless-offline; most tell of none. */
  hear(line: string): void
  /** Takes what there is. */
  take(): HandledRun[]
  /** Waits until there is something, or until the signal. */
  some(signal?: AbortSignal): Promise<void>
}

export function handledLog(): HandledLog {
  let runs: HandledRun[] = []
  let arrival = Promise.withResolvers<void>()
  return {
    hear(line) {
      const told = readTold<{ runs: HandledRun[] }>(line, 'Handled.')
      if (told === undefined) return
      runs.push(...told.runs)
      arrival.resolve()
    },
    take() {
      const taken = runs
      runs = []
      arrival = Promise.withResolvers()
      return taken
    },
    async some(signal) {
      const stopped = Promise.withResolvers<void>()
      signal?.addEventListener('abort', () => stopped.resolve(), { once: true })
      await Promise.race([arrival.promise, stopped.promise])
    },
  }
}

/** When something is due next, from the line that a poller writes at its end; undefined in other lines. */
export function readNextDue(line: string): Date | undefined {
  const nextDueAt = readTold<{ nextDueAt: string | null }>(line, 'Polled.')?.nextDueAt
  return nextDueAt ? new Date(nextDueAt) : undefined
}

/** A line of JSON with that message; undefined in other lines, of which anybody may write any. */
function readTold<Told>(line: string, message: string): Told | undefined {
  const at = line.indexOf(`{"level":"info","message":"${message}"`)
  if (at < 0) return undefined
  try {
    return JSON.parse(line.slice(at)) as Told
  } catch {
    return undefined
  }
}
