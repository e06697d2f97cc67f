import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { AttendMessage, AttendRequest } from './attend-client.ts'
import type { Random } from './random.ts'

/**
 * Lambda as far as the wake function needs it: environments are processes, kept warm, each for one invocation at a time.
 * An asynchronous invocation is always accepted, and waits while as many run as may.
 */
export interface LambdaProcesses {
  /** Takes asynchronous invocations, as Lambda's API does. */
  readonly url: string
  readonly counts: { invocations: number; delayed: number; killed: number; endings: Record<string, number> }
  /** When each event was handled. */
  readonly handledAt: ReadonlyMap<string, number>
  invoke(purpose: AttendRequest['purpose']): void
  /** Kills one that is at work; false: none is. */
  killOne(random: Random): boolean
  /** Resolves when none is at work, and none waits. */
  quiet(): Promise<void>
  close(): Promise<void>
}

export interface LambdaProcessesOptions {
  readonly databaseUrl: string
  /** Invocations at once. */
  readonly concurrency: number
  /** As of the function's setting. */
  readonly maxPollers: number
  /** That each may take. */
  readonly ms: number
}

export async function startLambdaProcesses(options: LambdaProcessesOptions): Promise<LambdaProcesses> {
  const { databaseUrl, concurrency, maxPollers, ms } = options
  const busy = new Set<ChildProcess>()
  const warm: ChildProcess[] = []
  const waiting: AttendRequest['purpose'][] = []
  const counts: LambdaProcesses['counts'] = { invocations: 0, delayed: 0, killed: 0, endings: {} }
  const handledAt = new Map<string, number>()
  let wakeQuiet: () => void = () => {}
  let isClosed = false

  const settle = (child: ChildProcess): void => {
    busy.delete(child)
    const next = waiting.shift()
    if (next !== undefined) begin(next)
    if (busy.size === 0) wakeQuiet()
  }
  const start = (): ChildProcess => {
    const program = fileURLToPath(new URL('attend-client.ts', import.meta.url))
    const child = fork(program, [databaseUrl, String(maxPollers)], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    child.on('message', (message: AttendMessage) => {
      if ('invoke' in message) {
        invoke(message.invoke)
        return
      }
      const ended = message.ended.startsWith('failed') ? 'failed' : message.ended
      counts.endings[ended] = (counts.endings[ended] ?? 0) + 1
      for (const [id, atMs] of message.handledAt) handledAt.set(id, atMs)
      warm.push(child)
      settle(child)
    })
    child.once('exit', () => {
      const place = warm.indexOf(child)
      if (place >= 0) warm.splice(place, 1)
      settle(child)
    })
    return child
  }
  const begin = (purpose: AttendRequest['purpose']): void => {
    if (isClosed) return
    const child = warm.pop() ?? start()
    busy.add(child)
    child.send({ purpose, ms } satisfies AttendRequest)
  }
  const invoke = (purpose: AttendRequest['purpose']): void => {
    counts.invocations++
    if (busy.size < concurrency) {
      begin(purpose)
      return
    }
    counts.delayed++
    waiting.push(purpose)
  }

  const server = createServer(async (request, response) => {
    const { loopless } = JSON.parse(await text(request)) as { loopless: AttendRequest['purpose'] }
    invoke(loopless)
    response.writeHead(202).end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    counts,
    handledAt,
    invoke,
    killOne(random) {
      const child = [...busy][random.whole(0, Math.max(0, busy.size - 1))]
      if (child === undefined) return false
      counts.killed++
      return child.kill('SIGKILL')
    },
    async quiet() {
      while (busy.size > 0) {
        await new Promise<void>((resolve) => {
          wakeQuiet = resolve
        })
      }
    },
    async close() {
      isClosed = true
      const all = [...busy, ...warm]
      await Promise.all(
        all.map(async (child) => {
          const exit = once(child, 'exit')
          child.kill('SIGKILL')
          await exit
        }),
      )
      server.close()
    },
  }
}
