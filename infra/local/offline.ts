import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { home, project } from './home.ts'
import { freePort } from './postgres-server.ts'
import { findProcess, signalProcess } from './processes.ts'

const host = '127.0.0.1'
const startTimeoutMs = 60_000
const stopTimeoutMs = 8_000
const pidFile = join(home, 'offline.pid')
const logFile = join(home, 'offline.log')

/** serverless-offline: the functions behind a local API Gateway, their schedules, and Lambda's Invoke. */
export interface Offline {
  /** Of the HTTP API; settled once it is ready. */
  readonly url: string
  /** Of Lambda's Invoke; settled once it is ready. */
  readonly lambdaUrl: string
  /** What it and the functions have written. */
  readonly logFile: string
  /** Settles when it has ended, with how. */
  readonly ended: Promise<string>
  /**
   * Waits until it listens.
   *
   * @throws when it ends before, or takes too long, with the end of its log
   */
  ready(): Promise<void>
  /**
   * Invokes a function, as the AWS SDK would, and returns its answer.
   *
   * @throws what the function threw, as an Error with its message
   */
  invoke(functionName: string): Promise<unknown>
  stop(): Promise<void>
}

/**
 * Starts serverless-offline. What an earlier run that was killed left behind is stopped first.
 *
 * @param environment for serverless.yml
 * @param onLine gets each line that it or a function writes
 */
export async function startOffline(
  environment: Record<string, string>,
  onLine: (line: string) => void,
): Promise<Offline> {
  await stopLeftover()
  let launched = launch(environment, onLine, await portNear(3000), await portNear(3002))
  return {
    get url() {
      return launched.url
    },
    get lambdaUrl() {
      return launched.lambdaUrl
    },
    logFile,
    get ended() {
      return launched.ended
    },
    async ready() {
      try {
        await listens(launched)
      } catch (error) {
        // Another program may have taken a port since it was found free.
        if (!launched.isPortTaken()) throw error
        launched = launch(environment, onLine, await freePort(), await freePort())
        await listens(launched)
      }
    },
    invoke: (functionName) => invoke(launched.lambdaUrl, functionName),
    stop: () => stop(launched.child),
  }
}

/** One process of serverless-offline. */
interface Launched {
  readonly child: ChildProcess
  readonly url: string
  readonly lambdaUrl: string
  /** Resolves when it says so: that something answers at the port proves nothing, it may be another program. */
  readonly listening: Promise<void>
  readonly ended: Promise<string>
  isPortTaken(): boolean
}

function launch(
  environment: Record<string, string>,
  onLine: (line: string) => void,
  httpPort: number,
  lambdaPort: number,
): Launched {
  const url = `http://${host}:${httpPort}`
  const lambdaUrl = `http://${host}:${lambdaPort}`
  const options = ['--host', host, '--httpPort', String(httpPort), '--lambdaPort', String(lambdaPort)]
  const child = spawn(
    process.execPath,
    [
      `--import=${new URL('announce-handled.ts', import.meta.url).href}`,
      join(project, 'node_modules/serverless/bin/serverless.js'),
      ...['offline', '--stage', 'local', ...options],
    ],
    {
      cwd: project,
      env: { ...process.env, NO_COLOR: '1', ...lambdaEnvironment(lambdaUrl), ...environment },
      // A group of its own: Ctrl-C reaches this process only, which stops everything in order.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  writeFileSync(pidFile, String(child.pid))
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message))
    // Once its last words are read.
    child.once('close', (code, signal) => resolve(`serverless-offline ended with ${signal ?? code}`))
  })
  const listening = Promise.withResolvers<void>()
  let isPortTaken = false
  writeLog(child, (line) => {
    if (line.startsWith(`Server ready: ${url}`)) listening.resolve()
    if (line.includes('EADDRINUSE')) isPortTaken = true
    onLine(line)
  })
  return { child, url, lambdaUrl, listening: listening.promise, ended, isPortTaken: () => isPortTaken }
}

/** Functions that invoke functions do it here, whatever account the user has. */
function lambdaEnvironment(lambdaUrl: string): Record<string, string> {
  return { AWS_ENDPOINT_URL_LAMBDA: lambdaUrl, AWS_ACCESS_KEY_ID: 'local', AWS_SECRET_ACCESS_KEY: 'local' }
}

async function listens({ listening, ended }: Launched): Promise<void> {
  const tooLate = sleep(startTimeoutMs, `it did not listen within ${startTimeoutMs / 1000} s`, { ref: false })
  try {
    await Promise.race([
      listening,
      Promise.race([ended, tooLate]).then((reason) => Promise.reject(new Error(reason))),
    ])
  } catch (error) {
    const log = readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-15).join('\n  ')
    throw new Error(`serverless-offline did not start: ${(error as Error).message}\n\n  ${log}`, {
      cause: error,
    })
  }
}

function writeLog(child: ChildProcess, onLine: (line: string) => void): void {
  const log = createWriteStream(logFile)
  for (const stream of [child.stdout, child.stderr]) {
    if (!stream) continue
    createInterface(stream).on('line', (line) => {
      log.write(`${line}\n`)
      onLine(line)
    })
  }
}

async function invoke(url: string, functionName: string): Promise<unknown> {
  const response = await fetch(`${url}/2015-03-31/functions/${functionName}/invocations`, {
    method: 'POST',
    body: '{}',
  })
  const text = await response.text()
  if (!response.ok) throw new Error(`Invoking ${functionName} failed with ${response.status}: ${text}`)
  const answer: unknown = text === '' ? null : JSON.parse(text)
  if (!response.headers.has('x-amz-function-error')) return answer
  throw new Error(`${functionName} failed: ${(answer as { errorMessage?: string }).errorMessage ?? text}`)
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.pid !== undefined) await end(child.pid)
  rmSync(pidFile, { force: true })
}

async function stopLeftover(): Promise<void> {
  let pid: number
  try {
    pid = Number(readFileSync(pidFile, 'utf8'))
  } catch {
    return
  }
  const command = findProcess(pid)?.command ?? ''
  if (command.includes('serverless') && command.includes('offline')) await end(pid)
  rmSync(pidFile, { force: true })
}

async function end(pid: number): Promise<void> {
  signalProcess(pid, 'SIGTERM')
  const deadline = performance.now() + stopTimeoutMs
  while (findProcess(pid)) {
    if (performance.now() > deadline) signalProcess(pid, 'SIGKILL')
    await sleep(20)
  }
}

/** The port, or another when something listens there. */
async function portNear(port: number): Promise<number> {
  const isFree = await new Promise<boolean>((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, host, () => server.close(() => resolve(true)))
  })
  return isFree ? port : freePort()
}
