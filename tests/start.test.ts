import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { freePort } from '../infra/local/postgres-server.ts'
import { findProcess } from '../infra/local/processes.ts'
import { exampleDatabase } from './support/examples.ts'

const root = fileURLToPath(new URL('..', import.meta.url))

interface Start {
  child: ChildProcess
  /** Waits until the output has a text. */
  says(text: string): Promise<void>
  /** Its exit code or signal, and all that it wrote. */
  ended: Promise<{ code: number | string | null; output: string }>
}

let home: string
let port: number
let started: Start[] = []
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'loopless-start-'))
  port = await freePort()
})
afterEach(async () => {
  for (const { child } of started) child.kill('SIGTERM')
  await Promise.all(started.map(({ ended }) => ended))
  started = []
  await rm(home, { recursive: true, force: true })
})

function start(args: string[], env: NodeJS.ProcessEnv = {}): Start {
  const child = spawn(process.execPath, ['infra/local/start.ts', ...args], {
    cwd: root,
    env: {
      ...process.env,
      DATABASE_URL: undefined,
      LOOPLESS_HOME: home,
      LOOPLESS_POSTGRES_PORT: String(port),
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  let check = (): void => {}
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (data: string) => {
      output += data
      check()
    })
  }
  const ended = new Promise<{ code: number | string | null; output: string }>((resolve) => {
    child.once('close', (code, signal) => resolve({ code: signal ?? code, output }))
  })
  const says = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      check = () => output.includes(text) && resolve()
      check()
      void ended.then(() => reject(new Error(`It ended without saying "${text}":\n${output}`)))
    })
  const result = { child, says, ended }
  started.push(result)
  return result
}

const pidIn = async (file: string): Promise<number> =>
  Number((await readFile(join(home, file), 'utf8')).split('\n')[0])

describe('npm start', { timeout: 300_000 }, () => {
  it('goes on where a run that was killed left off, settles the 329 webhooks, and stops what it started', async () => {
    const killed = start([])
    await killed.says('handlers registered')
    const offline = await vi.waitFor(() => pidIn('offline.pid'), { timeout: 60_000, interval: 10 })
    const leftBehind: [number, number] = [await pidIn('postgres/postmaster.pid'), offline]
    killed.child.kill('SIGKILL')
    await killed.ended
    expect(findProcess(leftBehind[0])).toBeDefined() // serverless-offline may end when its output goes nowhere

    const again = start(['--once'])
    await again.says('Posting')
    const processes = [await pidIn('postgres/postmaster.pid'), await pidIn('offline.pid')]
    const { code, output } = await again.ended
    expect(output).toContain('A dead letter.')
    expect(output).toContain('Invalid type: Expected string but received null')
    expect(output).toMatch(/[1-9]\d* retries\./)
    const lastLine = output.trimEnd().split('\n').at(-1) ?? ''
    expect(JSON.parse(lastLine)).toMatchObject({ published: 329, handled: 328, dead: 1, waiting: 0 })
    expect(JSON.parse(lastLine).retried).toBeGreaterThanOrEqual(3)
    expect(output).toMatch(/[\d.]+ ms from commit to handler when nothing else goes on/)
    expect(JSON.parse(lastLine).wakes).toBeGreaterThanOrEqual(1)
    expect(JSON.parse(lastLine)).toMatchObject({
      latencyMs: expect.any(Number),
      busyLatencyMs: expect.any(Number),
    })
    const lines = output.split('\n').filter((line) => !line.includes(home) && line !== lastLine)
    expect(lines.filter((line) => line.length > 80)).toEqual([])
    expect(code).toBe(0)
    expect([...leftBehind, ...processes].map(findProcess)).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
    ])
  })

  it('says what to do when the port of Postgres is taken', async () => {
    const other = createServer()
    await new Promise<void>((resolve) => other.listen(port, '127.0.0.1', resolve))
    try {
      const { code, output } = await start(['--once']).ended
      expect(output).toContain(`Port ${port}, where Postgres was to listen, is taken by another program.`)
      expect(output).toContain(`LOOPLESS_POSTGRES_PORT=${port + 1} npm start`)
      expect(output).not.toMatch(/^ +at /m)
      expect(code).toBe(1)
    } finally {
      await new Promise((resolve) => other.close(resolve))
    }
  })
})

describe('npm start with DATABASE_URL', { timeout: 300_000 }, async () => {
  const { url, sql } = await exampleDatabase()

  it('uses that database, runs once at a time, and ends everything at Ctrl-C', async () => {
    const first = start(['--once'], { DATABASE_URL: url })
    await first.says('Posting')
    const offline = await pidIn('offline.pid')
    const second = await start(['--once'], { DATABASE_URL: url }).ended
    expect(second.output).toContain(`Loopless runs here already, as process ${first.child.pid}`)
    expect(second.code).toBe(1)

    first.child.kill('SIGINT')
    expect((await first.ended).code).toBe(130)
    expect(findProcess(offline)).toBeUndefined()
    expect(await sql`select from loopless.handler`).toHaveLength(3)
    expect(await sql`select from loopless.wake_target`).toHaveLength(0)
    await expect(readFile(join(home, 'postgres/postmaster.pid'))).rejects.toThrow('ENOENT')
  })

  it('runs the handler at once when something is published in SQL, and says how soon', async () => {
    const { child, says, ended } = start([], { DATABASE_URL: url })
    await says('Everything stays up')
    const [row] = await sql`select loopless.publish('order.placed', '{}') as id`
    await says(`order.placed (event ${row?.['id']}) handled, `)
    child.kill('SIGINT')
    const { code, output } = await ended
    expect(output).toMatch(/order\.placed \(event \d+\) handled, [\d.]+ ms from publish\s+to handler/)
    expect(code).toBe(0)
  })

  it('leaves the wakes of somebody else as they are, and polls all the same', async () => {
    await sql`select loopless.set_wake(now(), 'shop-wake')`
    const { code, output } = await start(['--once'], { DATABASE_URL: url }).ended
    expect(output).toContain('Publishes wake shop-wake in this database. That is left as it is')
    expect(JSON.parse(output.trimEnd().split('\n').at(-1) ?? '')).toMatchObject({
      ...{ published: 329, handled: 328, waiting: 0 },
      wakes: null,
      latencyMs: null,
    })
    expect(code).toBe(0)
    expect(await sql`select function_arn from loopless.wake_target`).toEqual([{ function_arn: 'shop-wake' }])
  })
})
