import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from 'vitest'
import type { PostgresServer } from '../infra/local/postgres-server.ts'
import { startServer } from './support/server.ts'

// The released postgres.js fails all of these but the pipelined one, which only guards the mending: see
// infra/local/mend-driver.mjs.

let server: PostgresServer
beforeAll(async () => {
  server = await startServer()
})
beforeEach(() => server.start())
afterAll(() => server.destroy())

test('rejects a query that was in the write buffer when its connection died, and works again', async () => {
  expect(await runClient('buffered')).toEqual({
    exitCode: 0,
    errors: '',
    result: { buffered: 'lost', next: 'fulfilled' },
  })
})

test('rejects a query that was sent while its connection was dying, and answers the next ones right', async () => {
  expect(await runClient('reset')).toEqual({
    exitCode: 0,
    errors: '',
    result: { again: 'lost', next: [[{ n: 1 }], [{ n: 2 }]] },
  })
})

test('settles every query and works again when the server dies amid pipelined queries', async () => {
  const { exitCode, errors, result } = await runClient('pipelined')
  expect({ exitCode, errors }).toEqual({ exitCode: 0, errors: '' })
  const rounds = result as Round[]
  expect(rounds).toHaveLength(4)
  for (const { sent, answered, rejected, ...rest } of rounds) {
    expect(rest).toEqual({ wronglyAnswered: 0, settled: 'fulfilled', next: 'fulfilled' })
    expect(answered + rejected).toBe(sent)
    expect(rejected).toBeGreaterThan(0)
  }
})

test('rejects what a transaction sends after its connection died, also once the client is connected again', async () => {
  expect(await runClient('transaction')).toEqual({
    exitCode: 0,
    errors: '',
    result: {
      running: 'lost',
      queued: 'lost',
      'with no connection': 'lost',
      'in the next session': 'lost',
      transaction: 'lost',
      rows: [],
      next: 'fulfilled',
    },
  })
})

test('keeps a reserved connection that died out of the pool', async () => {
  expect(await runClient('reserved')).toEqual({
    exitCode: 0,
    errors: '',
    result: {
      running: 'lost',
      late: 'lost',
      failed: 'ECONNREFUSED',
      next: 'fulfilled',
    },
  })
})

test('ends a client whose connection dies while it waits for its last query', async () => {
  expect(await runClient('end')).toEqual({
    exitCode: 0,
    errors: '',
    result: { running: 'lost', ended: 'fulfilled' },
  })
})

test('starts the next result empty after an error amid rows', async () => {
  expect(await runClient('error')).toEqual({
    exitCode: 0,
    errors: '',
    result: { failed: '22012', rows: [{ n: 1 }] },
  })
})

interface ClientRun {
  exitCode: number | null
  errors: string
  result: unknown
}

/** A server's end, as the scenario `pipelined` counts it. */
interface Round {
  sent: number
  answered: number
  rejected: number
  wronglyAnswered: number
  settled: string
  next: string
}

/** Runs a scenario of support/driver-client.ts, doing to the server what it asks for. */
async function runClient(scenario: string): Promise<ClientRun> {
  const client: ChildProcess = fork(
    fileURLToPath(new URL('support/driver-client.ts', import.meta.url)),
    [server.url, scenario],
    {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    },
  )
  onTestFinished(() => void client.kill('SIGKILL'))
  client.on('message', async (request: 'crash' | 'kill9' | 'start') => {
    await server[request]()
    if (client.connected) client.send('done')
  })
  if (!client.stdout || !client.stderr) throw new Error('The client has no output to read.')
  const [output, errors] = await Promise.all([text(client.stdout), text(client.stderr), once(client, 'exit')])
  return { exitCode: client.exitCode, errors, result: output ? JSON.parse(output) : undefined }
}
