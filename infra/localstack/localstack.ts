import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { findProcess, signalProcess } from '../local/processes.ts'
import { installLocalStack, version } from './install.ts'

/** What runs in Docker. */
export const image = `localstack/localstack:${version}`
const host = '127.0.0.1'
const startTimeoutMs = 120_000
const stopTimeoutMs = 20_000

/** An emulated AWS account. It keeps nothing: the next start is empty. */
export interface LocalStack {
  /** For AWS_ENDPOINT_URL. */
  readonly url: string
  /** What runs it, e.g. `LocalStack 4.14.0 on Python`. */
  readonly name: string
  /** What it writes, and nothing of what functions write: that is in its CloudWatch Logs. */
  readonly logFile: string
  /** Settles when it has ended, with how. */
  readonly ended: Promise<string>
  stop(): Promise<void>
}

export interface StartOptions {
  readonly port: number
  /** For its files and its log. */
  readonly directory: string
  readonly onProgress: (text: string) => void
}

/**
 * Starts LocalStack, in Docker where an engine answers, otherwise as a plain process, and waits until it answers. Functions are Node processes beside
 * it (plugin/) either way: they see the same files, network and database as everything else on this machine.
 */
export async function startLocalStack(options: StartOptions): Promise<LocalStack> {
  const { directory, port } = options
  await mkdir(directory, { recursive: true })
  const command = (await hasDocker()) ? inDocker(port) : await onPython(options)
  const logFile = join(directory, 'localstack.log')
  const child = spawn(command.program, command.args, {
    env: { ...process.env, ...command.environment },
    // A group of its own: Ctrl-C reaches this process only, which stops it in order.
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  const log = createWriteStream(logFile)
  for (const stream of [child.stdout, child.stderr]) stream.pipe(log, { end: false })
  const onExit = (): void => signalProcess(child.pid ?? 0, 'SIGTERM')
  process.once('exit', onExit)
  const ended = Promise.race([
    once(child, 'error').then(([error]) => String(error)),
    once(child, 'exit').then(([code, signal]) => `LocalStack ended with ${signal ?? code}`),
  ])
  const stop = async (): Promise<void> => {
    await end(child)
    process.off('exit', onExit)
  }
  const url = `http://${host}:${port}`
  await becomeReady(url, ended).catch(async (error: Error) => {
    await stop()
    const lines = (await readFile(logFile, 'utf8')).trimEnd().split('\n').slice(-15).join('\n  ')
    throw new Error(`LocalStack did not start: ${error.message}\n\n  ${lines}`, { cause: error })
  })
  return { url, name: command.name, logFile, ended, stop }
}

interface Command {
  readonly name: string
  readonly program: string
  readonly args: string[]
  readonly environment: Record<string, string>
}

/** What LocalStack is told, however it runs, beside where it listens. */
export const settings = {
  LAMBDA_RUNTIME_EXECUTOR: 'node', // the plugin
  LAMBDA_SYNCHRONOUS_CREATE: '1', // CloudFormation waits 5 s for each function otherwise
  LAMBDA_RETRY_BASE_DELAY_SECONDS: '1', // asynchronous invocations are tried again after 1 and 2 s, not 60 and 120
  SQS_ENDPOINT_STRATEGY: 'path', // a queue's URL has no name that must be resolved
  CFN_IGNORE_UNSUPPORTED_RESOURCE_TYPES: '1', // a dashboard, for one
  // It asks the network for nothing.
  SKIP_SSL_CERT_DOWNLOAD: '1',
  DISABLE_EVENTS: '1',
  DNS_ADDRESS: '0',
  API_ENDPOINT: 'http://127.0.0.1:9',
}

function settingsAt(port: number): Record<string, string> {
  return {
    ...settings,
    GATEWAY_LISTEN: `${host}:${port}`,
    LOCALSTACK_HOST: `localhost:${port}`, // in the URLs that it gives
  }
}

async function onPython({ port, directory, onProgress }: StartOptions): Promise<Command> {
  return {
    name: `LocalStack ${version} on Python`,
    program: await installLocalStack(onProgress),
    args: ['-m', 'loopless_localstack'],
    environment: {
      ...settingsAt(port),
      PYTHONPATH: join(import.meta.dirname, 'plugin'),
      PYTHONDONTWRITEBYTECODE: '1',
      LOOPLESS_NODE: process.execPath,
      OVERRIDE_IN_DOCKER: '0', // where all this runs in a container, it is not LocalStack's
      FILESYSTEM_ROOT: join(directory, 'state'),
      TMP: join(directory, 'state'),
      XDG_CACHE_HOME: join(directory, 'cache'),
    },
  }
}

/** On Linux, where a container can share this machine's network. */
async function hasDocker(): Promise<boolean> {
  if (process.platform !== 'linux') return false
  return promisify(execFile)('docker', ['info', '--format', '{{.ServerVersion}}'], { timeout: 10_000 }).then(
    () => true,
    () => false,
  )
}

/** On the host's network, so that functions reach what this machine serves at 127.0.0.1. */
function inDocker(port: number): Command {
  const plugin = '/opt/loopless'
  const environment = { ...settingsAt(port), PYTHONPATH: plugin, PYTHONDONTWRITEBYTECODE: '1' }
  return {
    name: `${image} in Docker`,
    program: 'docker',
    args: [
      ...['run', '--rm', '--init', '--network', 'host', '--name', `loopless-localstack-${port}`],
      ...['--volume', `${join(import.meta.dirname, 'plugin')}:${plugin}:ro`],
      ...['--volume', `${process.execPath}:/opt/node:ro`, '--env', 'LOOPLESS_NODE=/opt/node'],
      ...Object.entries(environment).flatMap(([name, value]) => ['--env', `${name}=${value}`]),
      image,
    ],
    environment: {},
  }
}

async function becomeReady(url: string, ended: Promise<string>): Promise<void> {
  let isOver = false
  const over = ended.then((reason) => {
    isOver = true
    throw new Error(reason)
  })
  const answers = async (): Promise<void> => {
    const deadline = performance.now() + startTimeoutMs
    while (!isOver && performance.now() < deadline) {
      const isUp = await fetch(`${url}/_localstack/health`).then(
        (response) => response.ok,
        () => false,
      )
      if (isUp) return
      await sleep(100)
    }
    throw new Error(`it did not answer within ${startTimeoutMs / 1000} s`)
  }
  over.catch(() => {}) // it may well end later
  await Promise.race([answers(), over])
}

/** It ends the processes of its functions; docker passes the signal on. */
async function end({ pid = 0 }: ChildProcess): Promise<void> {
  if (pid === 0) return
  signalProcess(pid, 'SIGTERM')
  const deadline = performance.now() + stopTimeoutMs
  while (findProcess(pid)) {
    if (performance.now() > deadline) signalProcess(-pid, 'SIGKILL')
    await sleep(50)
  }
}
