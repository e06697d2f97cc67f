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

/** serverless-offline: the functions behind a local API Gateway, their schedules, and Lambda's Invoke. */
export interface Offline {
  /** Of the HTTP API. */
  readonly url: string
  /** Of Lambda's Invoke. */
  readonly lambdaUrl: string
  /** What it and the functions have written. */
  readonly logFile: string
  /** Settles when it has ended, with how. */
  readonly ended: Promise<string>
  /**
   * Waits until it answers.
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
  const [httpPort, lambdaPort] = [await portNear(3000), await portNear(3002)]
  const url = `http://${host}:${httpPort}`
  const lambdaUrl = `http://${host}:${lambdaPort}`
  const logFile = join(home, 'offline.log')
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
    child.once('exit', (code, signal) => resolve(`serverless-offline ended with ${signal ?? code}`))
  })
  writeLog(child, logFile, onLine)
  return {
    url,
    lambdaUrl,
    logFile,
    ended,
    ready: () => becomeReady(url, ended, logFile),
    invoke: (functionName) => invoke(lambdaUrl, functionName),
    stop: () => stop(child),
  }
}

/** Functions that invoke functions do it here, whatever account the user has. */
function lambdaEnvironment(lambdaUrl: string): Record<string, string> {
  return { AWS_ENDPOINT_URL_LAMBDA: lambdaUrl, AWS_ACCESS_KEY_ID: 'local', AWS_SECRET_ACCESS_KEY: 'local' }
}

async function becomeReady(url: string, ended: Promise<string>, logFile: string): Promise<void> {
  try {
    await Promise.race([answers(url), ended.then((reason) => Promise.reject(new Error(reason)))])
  } catch (error) {
    const log = readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-15).join('\n  ')
    throw new Error(`serverless-offline did not start: ${(error as Error).message}\n\n  ${log}`, {
      cause: error,
    })
  }
}

function writeLog(child: ChildProcess, logFile: string, onLine: (line: string) => void): void {
  const log = createWriteStream(logFile)
  for (const stream of [child.stdout, child.stderr]) {
    if (!stream) continue
    createInterface(stream).on('line', (line) => {
      log.write(`${line}\n`)
      onLine(line)
    })
  }
}

async function answers(url: string): Promise<void> {
  const deadline = performance.now() + startTimeoutMs
  while (performance.now() < deadline) {
    // Any answer will do: there is nothing at the root.
    const isUp = await fetch(url).then(
      () => true,
      () => false,
    )
    if (isUp) return
    await sleep(50)
  }
  throw new Error(`it did not answer within ${startTimeoutMs / 1000} s`)
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
