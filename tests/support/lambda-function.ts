import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { signalProcess } from '../../infra/local/processes.ts'
import { interfaceClient } from './interface-client.ts'
import type { PackagedFunction } from './packaged-functions.ts'
import { type RuntimeAnswer, type RuntimeApi, startRuntimeApi } from './runtime-api.ts'

/** What an invocation came to. */
export type Invocation = RuntimeAnswer & {
  /** From the invocation to its answer. */
  readonly ms: number
  /** From the start of the process until it asked for its invocation; undefined in a warm environment. */
  readonly initMs: number | undefined
}

/**
 * A function as Lambda runs it: an environment (a process under AWS's runtime interface client) is made when there is
 * none, kept for further invocations, frozen whenever none is under way, and killed at the time-out.
 */
export interface LambdaFunction {
  /** @param options.timeoutSeconds instead of the deployed one */
  invoke(event: unknown, options?: { timeoutSeconds?: number }): Promise<Invocation>
  /** The process of the environment; undefined when there is none. */
  readonly pid: number | undefined
  /** What the functions have written, of all environments. */
  readonly log: string
  /**
   * Sends SIGTERM to the environment, thawed, as before it is shut down. Its process decides what happens. Resolves once
   * that has seen it, or has ended.
   */
  terminate(): Promise<void>
  /** Ends the environment, as Lambda does when it needs it no more. */
  shutDown(): Promise<void>
}

interface Environment {
  readonly child: ChildProcess
  readonly api: RuntimeApi
  readonly directory: string
  /** Its code has seen SIGTERM. */
  readonly told: Promise<unknown>
  readonly ended: Promise<RuntimeAnswer>
  readonly init: Promise<{ failure: RuntimeAnswer | undefined; ms: number }>
}

/**
 * Makes a packaged function ready for invocations; nothing is started before the first.
 *
 * @param overrides of its environment variables
 */
export function lambdaFunction(
  deployed: PackagedFunction,
  overrides: Record<string, string> = {},
): LambdaFunction {
  let environment: Environment | undefined
  const log: string[] = []

  async function shutDown(): Promise<void> {
    const ending = environment
    environment = undefined
    if (ending) await end(ending)
  }

  async function invoke(
    event: unknown,
    { timeoutSeconds = deployed.timeoutSeconds }: { timeoutSeconds?: number } = {},
  ): Promise<Invocation> {
    const isCold = environment === undefined
    environment ??= await startEnvironment(deployed, overrides, (text) => log.push(text))
    const { child, api, ended, init } = environment
    const { failure, ms } = await init
    const initMs = isCold ? ms : undefined
    const beganMs = performance.now()
    const answer =
      failure ??
      (await answerOf(timeoutSeconds, ended, (requestId) => {
        thaw(child)
        return api.invoke({
          requestId,
          deadlineMs: Date.now() + timeoutSeconds * 1000,
          functionArn: `arn:aws:lambda:eu-central-1:000000000000:function:${deployed.functionName}`,
          event,
        })
      }))
    const result = { ...answer, ms: performance.now() - beganMs, initMs }
    const isUsable =
      failure === undefined && !isFatal(answer) && (await Promise.race([api.idle(), ended])) === undefined
    if (isUsable) freeze(child)
    else await shutDown()
    return result
  }

  return {
    invoke,
    get pid() {
      return environment?.child.pid
    },
    get log() {
      return log.join('')
    },
    async terminate() {
      if (!environment) return
      const { child, told, ended } = environment
      thaw(child)
      child.kill('SIGTERM')
      await Promise.race([told, ended])
    },
    shutDown,
  }
}

/** Killed when this process ends before it could do it: one that is frozen would stay for ever. */
const children = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

const timeoutType = 'Sandbox.Timedout'
const exitType = 'Runtime.ExitError'
const entry = fileURLToPath(new URL('./rapid-client.ts', import.meta.url))

async function startEnvironment(
  { functionName, handler, environment, memoryMb, files }: PackagedFunction,
  overrides: Record<string, string>,
  onOutput: (text: string) => void,
): Promise<Environment> {
  const client = await interfaceClient()
  const directory = await mkdtemp(join(tmpdir(), 'loopless-lambda-'))
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(directory, path)), { recursive: true })
    await writeFile(join(directory, path), content)
  }
  const api = await startRuntimeApi()
  const beganMs = performance.now()
  const child = spawn(
    process.execPath,
    ['--import', entry, `--max-old-space-size=${Math.floor(memoryMb * 0.9)}`, client],
    {
      cwd: directory,
      // Nothing of this process's own environment: what a function is not given, it has not.
      env: {
        PATH: process.env['PATH'],
        TZ: ':UTC',
        LANG: 'en_US.UTF-8',
        AWS_REGION: 'eu-central-1',
        AWS_ACCESS_KEY_ID: 'test',
        AWS_SECRET_ACCESS_KEY: 'test',
        AWS_EXECUTION_ENV: 'AWS_Lambda_nodejs24.x',
        AWS_LAMBDA_FUNCTION_NAME: functionName,
        AWS_LAMBDA_FUNCTION_VERSION: '$LATEST',
        AWS_LAMBDA_LOG_GROUP_NAME: `/aws/lambda/${functionName}`,
        AWS_LAMBDA_LOG_STREAM_NAME: 'test',
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE: String(memoryMb),
        AWS_LAMBDA_RUNTIME_API: api.address,
        LAMBDA_TASK_ROOT: directory,
        _HANDLER: handler,
        ...environment,
        ...overrides,
      },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    },
  )
  children.add(child)
  child.once('exit', () => children.delete(child))
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding('utf8').on('data', onOutput)
  const ended = once(child, 'exit').then(([code, signal]) => ({
    errorType: exitType,
    errorMessage: `Runtime exited with ${signal === null ? `exit status ${code}` : `signal ${signal}`}`,
  }))
  const init = Promise.race([api.idle(), ended]).then((failure) => ({
    failure,
    ms: performance.now() - beganMs,
  }))
  const told = once(child.stdio[3] as Readable, 'data').catch(() => ended)
  return { child, api, directory, told, ended, init }
}

async function end({ child, api, directory, ended }: Environment): Promise<void> {
  child.kill('SIGKILL')
  await ended
  await api.close()
  await rm(directory, { recursive: true, force: true })
}

/** What the runtime answers; if its process ends, that; and after the time-out, that. */
async function answerOf(
  timeoutSeconds: number,
  ended: Promise<RuntimeAnswer>,
  run: (requestId: string) => Promise<RuntimeAnswer>,
): Promise<RuntimeAnswer> {
  const requestId = randomUUID()
  const timedOut = Promise.withResolvers<RuntimeAnswer>()
  const timer = setTimeout(() => {
    timedOut.resolve({
      errorType: timeoutType,
      errorMessage: `${requestId} Task timed out after ${timeoutSeconds.toFixed(2)} seconds`,
    })
  }, timeoutSeconds * 1000)
  try {
    return await Promise.race([run(requestId), ended, timedOut.promise])
  } finally {
    clearTimeout(timer)
  }
}

function isFatal(answer: RuntimeAnswer): boolean {
  return 'errorType' in answer && [timeoutType, exitType].includes(answer.errorType)
}

function freeze(child: ChildProcess): void {
  if (child.pid !== undefined) signalProcess(child.pid, 'SIGSTOP')
}

function thaw(child: ChildProcess): void {
  if (child.pid !== undefined) signalProcess(child.pid, 'SIGCONT')
}
