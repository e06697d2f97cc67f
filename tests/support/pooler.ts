import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { createInterface } from 'node:readline'
import { freePort } from '../../infra/local/postgres-server.ts'

/** PgBouncer in transaction mode in front of a server. */
export interface Pooler {
  /** A database of the server, through the pooler. */
  urlOf(url: string): string
  stop(): Promise<void>
}

/** Where PgBouncer is; undefined when this machine has none. */
export function findPgBouncer(): string | undefined {
  const directories = (process.env['PATH'] ?? '').split(delimiter)
  return [...directories, '/usr/sbin'].map((directory) => join(directory, 'pgbouncer')).find(existsSync)
}

/**
 * Starts it on a free port. Each transaction gets the session that was used longest ago, of so many a database: a
 * client that relies on its session is found out.
 */
export async function startPooler(program: string, serverUrl: string, sessions: number): Promise<Pooler> {
  const server = new URL(serverUrl)
  const port = await freePort()
  const directory = mkdtempSync(join(tmpdir(), 'loopless-pooler-'))
  chmodSync(directory, 0o755)
  const file = join(directory, 'pgbouncer.ini')
  const password = server.password ? ` password='${decodeURIComponent(server.password)}'` : ''
  writeFileSync(
    file,
    `[databases]
* = host=${server.hostname} port=${server.port || 5432} user=${decodeURIComponent(server.username)}${password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = ${sessions}
server_round_robin = 1
`,
  )
  const asNobody = process.getuid?.() === 0 ? ['-u', 'nobody'] : [] // it refuses to run as root
  const child = spawn(program, [...asNobody, file], { stdio: ['ignore', 'ignore', 'pipe'] })
  const exited = once(child, 'exit')
  const end = (): void => {
    child.kill('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  }
  process.once('exit', end)
  await untilUp(child.stderr)
  return {
    urlOf: (url) => Object.assign(new URL(url), { hostname: '127.0.0.1', port }).href,
    stop: async () => {
      process.off('exit', end)
      end()
      await exited
    },
  }
}

async function untilUp(log: NodeJS.ReadableStream): Promise<void> {
  const said: string[] = []
  for await (const line of createInterface({ input: log })) {
    said.push(line)
    if (!line.includes('process up')) continue
    log.resume() // what it says from now on is of no interest, and must not fill the pipe
    return
  }
  throw new Error(`PgBouncer did not start:\n${said.join('\n')}`)
}
