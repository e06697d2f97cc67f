import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import postgres from 'postgres'
import { afterAll, afterEach, beforeEach, expect, it, vi } from 'vitest'
import { freePort, type PostgresServer, postgresServer } from '../infra/local/postgres-server.ts'
import { childrenOf, findProcess, signalProcess } from '../infra/local/processes.ts'

const home = mkdtempSync(join(tmpdir(), 'loopless-leftover-'))
const others: number[] = []
let server: PostgresServer
let postmaster: number

beforeEach(async () => {
  server = await postgresServer({
    dataDirectory: join(home, 'data'),
    port: await freePort(),
    settings: { fsync: 'off' },
  })
  await server.start()
  postmaster = Number(pidFile().split('\n')[0])
})

afterEach(() => {
  server.destroyNow()
  for (const pid of others.splice(0)) signalProcess(pid, 'SIGKILL')
})

afterAll(() => rmSync(home, { recursive: true, force: true }))

it.each([
  ['another program has by now', anotherProgram],
  ['nobody has reaped yet', zombie],
])('starts again after a server that was killed, whose number %s', async (_, holder) => {
  const left = pidFile()
  await server.kill9()
  const pid = await holder()
  writeFileSync(join(server.dataDirectory, 'postmaster.pid'), left.replace(String(postmaster), String(pid)))
  await server.start()
  expect(await answer()).toBe(1)
})

it('does not start beside a backend that outlived its server', async () => {
  const sql = postgres(server.url, { max: 1, onnotice: () => {} })
  const [backend] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`
  const pid = backend?.pid ?? 0
  others.push(pid)
  signalProcess(pid, 'SIGSTOP')
  const rest = childrenOf(postmaster).filter((child) => child.pid !== pid)
  for (const process of [postmaster, ...rest.map((child) => child.pid)]) signalProcess(process, 'SIGKILL')
  await vi.waitFor(() => expect(findProcess(postmaster)).toBeUndefined())
  await expect(server.start()).rejects.toThrow(/pre-existing shared memory block .* is still in use/)
  signalProcess(pid, 'SIGKILL')
  await vi.waitFor(() => expect(findProcess(pid)).toBeUndefined())
  await server.start()
  expect(await answer()).toBe(1)
  await sql.end({ timeout: 0 })
})

function pidFile(): string {
  return readFileSync(join(server.dataDirectory, 'postmaster.pid'), 'utf8')
}

async function answer(): Promise<unknown> {
  const sql = postgres(server.url, { max: 1 })
  const [row] = await sql`select 1 as one`
  await sql.end()
  return row?.['one']
}

async function anotherProgram(): Promise<number> {
  const child = spawn('sleep', ['60'], { stdio: 'ignore', uid: ownerOf(server) })
  await once(child, 'spawn')
  others.push(child.pid ?? 0)
  return child.pid ?? 0
}

/** A process that has ended, of a parent that does not ask how. */
async function zombie(): Promise<number> {
  const parent = spawn('sh', ['-c', 'sleep 0 & echo $!; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'ignore'],
    uid: ownerOf(server),
  })
  others.push(parent.pid ?? 0)
  const [line] = await once(parent.stdout, 'data')
  const pid = Number(String(line))
  await vi.waitFor(() => expect(findProcess(pid)).toBeUndefined())
  return pid
}

/** Postgres takes no heed of other users' processes. */
function ownerOf({ dataDirectory }: PostgresServer): number {
  return statSync(dataDirectory).uid
}
