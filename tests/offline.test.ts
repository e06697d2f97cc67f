import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { freePort } from '../infra/local/postgres-server.ts'
import { exampleDatabase } from './support/examples.ts'
import { copyProject } from './support/project-copy.ts'
import { signedWebhook } from './support/signed-webhook.ts'

/** Of the stage `local`. */
const secret = 'for this machine only'
/** What handlers of this test do, one for each event `github.NAME`; those of the project handle every event. */
const handlers: Record<string, string> = {
  throws: "throw new Error('as told')",
  'rejects-late': "setTimeout(() => Promise.reject(new Error('late')), 50)",
  'throws-late': "setTimeout(() => { throw new Error('later') }, 50)",
  exits: 'process.exit(3)',
}

const { url, sql } = await exampleDatabase()
const directory = await copyProject()
const httpPort = await freePort()
let output = ''
let offline: ReturnType<typeof spawn>

beforeAll(async () => {
  for (const [name, text] of Object.entries(handlers)) {
    await writeFile(
      join(directory, `functions/handlers/${name}.ts`),
      `import { defineHandler } from '../../src/index.ts'
      export default defineHandler('github.${name}', { maxAttempts: 1 }, () => { ${text} })`,
    )
  }
  // serverless-offline knows schedules by the second, and the framework does not.
  const configuration = join(directory, 'serverless.yml')
  const text = await readFile(configuration, 'utf8')
  await writeFile(configuration, text.replace('configValidationMode: error', 'configValidationMode: off'))
  const ports = ['--httpPort', String(httpPort), '--lambdaPort', String(await freePort())]
  const everySecond = ['--param', 'pollSchedule=cron(* * * * * * *)']
  const program = join(directory, 'node_modules/serverless/bin/serverless.js')
  offline = spawn(process.execPath, [program, 'offline', ...ports, ...everySecond], {
    cwd: directory,
    env: { ...process.env, DATABASE_URL: url, NO_COLOR: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  for (const stream of [offline.stdout, offline.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  await says('Server ready')
})
afterAll(async () => {
  if (offline.exitCode !== null) return
  offline.kill('SIGTERM')
  await once(offline, 'close')
})

it('handles by the schedule what the webhook publishes', async () => {
  await isHandled(await publish('star'))
})

it('gives up the handler that throws, and goes on', async () => {
  await isDead(await publish('throws'), 'as told')
})

it.each([
  ['rejects-late', 'Error: late'],
  ['throws-late', 'Error: later'],
])('logs what a handler %s, and goes on', async (name, message) => {
  await isHandled(await publish(name))
  await says(message)
  await isHandled(await publish('star'))
})

it('gives up the handler that ends the process, and goes on', async () => {
  await isDead(await publish('exits'), 'process.exit(3)')
  await isHandled(await publish('star'))
  expect(offline.exitCode).toBeNull()
})

async function publish(name: string): Promise<string> {
  const message = signedWebhook(name, { repository: { full_name: 'loopless/test' } }, secret)
  const response = await fetch(`http://localhost:${httpPort}/webhooks/github`, { method: 'POST', ...message })
  expect(response.status).toBe(202)
  return ((await response.json()) as { id: string }).id
}

async function isHandled(id: string): Promise<void> {
  await expect.poll(() => sql`select from example.repository_activity where event_id = ${id}`).toHaveLength(1)
}

async function isDead(id: string, message: string): Promise<void> {
  await expect
    .poll(() => sql`select error_message as message from loopless.dead_letter where event_id = ${id}`)
    .toEqual([{ message: expect.stringContaining(message) }])
}

async function says(text: string): Promise<void> {
  await vi.waitFor(() => expect(output).toContain(text), { timeout: 60_000, interval: 50 })
}
