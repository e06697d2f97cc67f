import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { testDatabase } from './support/database.ts'

interface Outcome {
  readonly exitCode: number
  readonly stdout: string
  readonly stderr: string
}

const { url } = await testDatabase()
const root = join(import.meta.dirname, '..')
const folder = mkdtempSync(join(tmpdir(), 'loopless-cli-'))
const handlers = join(folder, 'handlers.mjs')

beforeAll(() => {
  const library = pathToFileURL(join(root, 'src/index.ts')).href
  writeFileSync(
    handlers,
    `import { defineHandler, defineHandlers, discard } from ${JSON.stringify(library)}
    export const handlers = defineHandlers({
      succeed: defineHandler('order.*', {}, () => console.log('from a handler')),
      refuse: defineHandler('order.placed', {}, () => { throw discard('out of stock') }),
      retry: defineHandler('order.placed', { jitter: 0 }, () => { throw new Error('HTTP 503') }),
    })`,
  )
})
afterAll(() => rmSync(folder, { recursive: true }))

function loopless(args: ReadonlyArray<string>, databaseUrl = url, input = ''): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...process.env, DATABASE_URL: databaseUrl, NO_COLOR: '1' }
    const options = { env, cwd: folder }
    const child = execFile(
      process.execPath,
      [join(root, 'src/cli/main.ts'), ...args],
      options,
      (error, stdout, stderr) =>
        resolve({ exitCode: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
    child.stdin?.end(input)
  })
}

const json = ({ stdout }: Outcome): unknown => JSON.parse(stdout)

describe('a bus, from the shell', () => {
  test('publishes, registers, polls and tells what became of an event', async () => {
    expect(json(await loopless(['migrate', '--json']))).toEqual({ applied: [] })
    const payload = '{"n": 12345678901234567890, "s": "\\u0000"}'
    const published = await loopless(['publish', 'order.placed', '-', '--json'], url, payload)
    expect(json(published)).toEqual({ id: '1', name: 'order.placed' })
    expect((await loopless(['why', '1'])).stdout).toContain('not claimed yet')

    const registered = await loopless(['register', '--handlers', handlers])
    expect(registered.stdout).toContain('Registered 3 handlers')
    const polled = await loopless(['poll', '--handlers', handlers, '--json'])
    expect(json(polled)).toMatchObject({ claimed: 1, succeeded: 1, retried: 1, dead: 1, drained: true })
    expect(polled.stderr).toContain('from a handler')

    const [status, why, list, show] = await Promise.all([
      loopless(['status']),
      loopless(['why', '1', '--json']),
      loopless(['dead', 'list']),
      loopless(['dead', 'show', '1']),
    ])
    expect(status.stdout).toMatch(/order\.placed +0/)
    expect(json(why)).toMatchObject({ event: { payload }, deliveries: [{ handler: 'retry', attempt: 1 }] })
    expect(list.stdout).toContain('DiscardRequest')
    expect(show.stdout).toContain('out of stock')
    expect(show.stdout).toContain('12345678901234567890')
    const lines = [status, list].flatMap(({ stdout }) => stdout.split('\n'))
    expect(lines.filter((line) => line.length > 80)).toEqual([])

    const redriven = await loopless(['dead', 'redrive', '1', '99', '--json'])
    expect(redriven).toMatchObject({ exitCode: 1, stderr: 'loopless: There is no dead letter 99.\n' })
    expect(json(redriven)).toEqual({ redriven: 1, missing: ['99'] })
  })
})

describe('what goes wrong is one line', () => {
  const database = (change: (url: URL) => void): string => {
    const changed = new URL(url)
    change(changed)
    return changed.href
  }
  test.for([
    ['no database', ['status'], '', 2, 'set DATABASE_URL'],
    ['a refused connection', ['status'], 'postgres://127.0.0.1:1/x', 1, 'connection refused'],
    [
      'a role that is missing',
      ['status'],
      database((to) => {
        to.username = 'nobody'
      }),
      1,
      '"nobody"',
    ],
    [
      'no schema',
      ['status'],
      database((to) => {
        to.pathname = '/postgres'
      }),
      1,
      'loopless migrate',
    ],
    ['an unknown event', ['why', '77'], url, 1, 'no event 77'],
    ['an unknown command', ['statsu'], url, 2, 'unknown command'],
    ['a name that is not valid', ['publish', 'No Name', '{}'], url, 2, 'lower-case'],
    ['a payload that is not JSON', ['publish', 'a', '{'], url, 2, 'JSON'],
    ['dead letters not named', ['dead', 'redrive'], url, 2, '--all'],
    ['no build', ['poll'], url, 1, 'npm run build'],
  ] as const)('%s', async ([, args, databaseUrl, exitCode, part]) => {
    const outcome = await loopless(args, databaseUrl)
    expect(outcome).toMatchObject({ exitCode, stdout: '' })
    expect(outcome.stderr).toContain(part)
    expect(outcome.stderr.trimEnd().split('\n')).toHaveLength(1)
  })
})
