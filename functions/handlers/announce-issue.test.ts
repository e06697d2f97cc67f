import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { defineHandlers, poll } from '../../src/index.ts'
import { exampleDatabase, webhooks } from '../../tests/support/examples.ts'
import announceIssue from './announce-issue.ts'

interface Issue {
  issue: { body: string | null }
}

const { sql, publish } = await exampleDatabase()
const handlers = defineHandlers({ 'announce-issue': announceIssue })
const [issue, ...others] = webhooks<Issue>('issues', 'opened').filter(({ issue }) => issue.body !== null)
const [emptyIssue] = webhooks<Issue>('issues', 'opened').filter(({ issue }) => issue.body === null)
const now = new Date('2030-01-01T00:00:00Z')
const later = (seconds: number): Date => new Date(now.getTime() + seconds * 1000)
const pollAt = (at: Date) => poll(at, { sql, handlers, random: () => 0.5, log: () => {} })

let status = 200
let requests: { headers: IncomingHttpHeaders; body: string }[] = []
const chat = createServer((request, response) => {
  let body = ''
  request.on('data', (data) => {
    body += data
  })
  request.on('end', () => {
    requests.push({ headers: request.headers, body })
    response.writeHead(status).end('an answer')
  })
})

beforeAll(async () => {
  await new Promise<void>((resolve) => chat.listen(0, '127.0.0.1', resolve))
})
afterAll(() => chat.close())
beforeEach(() => {
  process.env['CHAT_URL'] = `http://127.0.0.1:${(chat.address() as AddressInfo).port}/`
  status = 200
  requests = []
})
afterEach(() => {
  delete process.env['CHAT_URL']
})

it('announces a real issue, with an idempotency key', async () => {
  const id = await publish('github.issues.opened', issue)
  expect(await pollAt(now)).toMatchObject({ succeeded: 1 })
  expect(requests).toHaveLength(1)
  expect(requests[0]?.headers['idempotency-key']).toBe(`${id}:announce-issue`)
  expect(JSON.parse(requests[0]?.body ?? '')).toEqual({
    text: 'Codertocat opened “Spelling error in the README file” in Codertocat/Hello-World: https://github.com/Codertocat/Hello-World/issues/1',
  })
})

it('tries again after 1 s, with the same key, when the chat is out of order', async () => {
  status = 503
  const id = await publish('github.issues.opened', others[0])
  expect(await pollAt(now)).toMatchObject({ retried: 1, nextDueAt: later(1) })
  const [attempt] = await sql`select error_message from loopless.attempt where event_id = ${id}`
  expect(attempt?.['error_message']).toBe('The chat answered 503: an answer')

  status = 200
  expect(await pollAt(later(1))).toMatchObject({ succeeded: 1, nextDueAt: null })
  expect(new Set(requests.map(({ headers }) => headers['idempotency-key']))).toEqual(
    new Set([`${id}:announce-issue`]),
  )
})

it('sends an issue without a text to the dead letters, once and for all', async () => {
  const id = await publish('github.issues.opened', emptyIssue)
  expect(await pollAt(now)).toMatchObject({ dead: 1, retried: 0 })
  expect(await sql`select reason, attempts from loopless.dead_letter where event_id = ${id}`).toEqual([
    { reason: 'invalid', attempts: 0 },
  ])
  expect(requests).toEqual([])
})

it('announces nothing without CHAT_URL', async () => {
  delete process.env['CHAT_URL']
  await publish('github.issues.opened', issue)
  expect(await pollAt(now)).toMatchObject({ succeeded: 1 })
  expect(requests).toEqual([])
})
