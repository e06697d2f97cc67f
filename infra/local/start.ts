// `npm start`: an event bus on this machine, with real webhooks flowing through it. `--once`: the same, and then it
// ends. LOOPLESS_HOME, LOOPLESS_POSTGRES_PORT and DATABASE_URL say where; see home.ts and postgres.ts.

import { relative } from 'node:path'
import { connect, type HandlerSet } from '../../src/index.ts'
import { startChat } from './chat.ts'
import { owner, takeHome } from './home.ts'
import { startOffline } from './offline.ts'
import { builtHandlers, localPostgres, prepareDatabase } from './postgres.ts'
import { type RunResult, runWebhooks } from './run.ts'
import { paint, print, sayLast, step, wrap } from './screen.ts'
import { printNextSteps, printSummary } from './summary.ts'
import { signedWebhooks } from './webhooks.ts'

const secret = process.env['GITHUB_WEBHOOK_SECRET'] || 'for this machine only'
const isOnce = process.argv.includes('--once')

/** What was started, to be stopped in the opposite order. */
const closers: (() => unknown)[] = []
let isEnding = false
let isShowingPolls = false

process.on('SIGINT', () => stop(isOnce ? 130 : 0))
process.on('SIGTERM', () => stop(143))
process.on('SIGHUP', () => stop(129))
process.stdout.on('error', () => void end(1)) // nobody reads on
main().catch((error: unknown) => {
  if (isEnding) return // what was stopped complains
  printError(error)
  void end(1)
})

async function main(): Promise<void> {
  print()
  print(`${paint('bold', 'Loopless')}, an event bus in Postgres`)
  print()
  own()
  const databaseUrl = process.env['DATABASE_URL'] || (await startDatabase())
  const handlers = await step(
    'Handlers',
    build,
    ({ handlers: { length } }) => `${length} handlers found and built`,
  )
  const sql = connect(databaseUrl, { applicationName: 'npm start', max: 2 })
  closers.push(() => sql.end({ timeout: 1 }))
  await step('Schema', () => prepareDatabase(sql, handlers), sayPrepared)
  const chat = await startChat()
  closers.push(() => chat.close())
  const environment = { DATABASE_URL: databaseUrl, GITHUB_WEBHOOK_SECRET: secret, CHAT_URL: chat.url }
  const offline = await startOffline(environment, showPoll)
  closers.push(() => offline.stop())
  await step('Serverless', offline.ready, () => `serverless-offline on ${offline.url}`)

  const webhooks = signedWebhooks(secret)
  print()
  print(`Posting ${webhooks.length} real GitHub webhooks, signed, to ${paint('dim', '/webhooks/github')}`)
  print()
  const result = await runWebhooks(sql, offline, webhooks)
  await printSummary(sql, handlers, result, chat)
  if (isOnce) return finish(result, webhooks.length)
  await printNextSteps(sql, result, process.env['DATABASE_URL'] ? undefined : databaseUrl)
  print()
  print(paint('dim', `webhooks  ${offline.url}/webhooks/github`))
  print(paint('dim', `log       ${shortPath(offline.logFile)}`))
  print()
  print(`Everything stays up; a poll runs each minute. ${paint('bold', 'Ctrl-C')} stops it.`)
  isShowingPolls = true
  throw new Error(await offline.ended)
}

function own(): void {
  const release = takeHome()
  if (release === undefined) {
    throw new Error(
      `Loopless runs here already, as process ${owner()}: stop it with Ctrl-C where it runs, or start\n` +
        'another with LOOPLESS_HOME and LOOPLESS_POSTGRES_PORT set to places of its own.',
    )
  }
  closers.push(release)
}

async function startDatabase(): Promise<string> {
  const server = await localPostgres()
  const say = (): string => `Postgres on port ${server.port}, its data in ${shortPath(server.dataDirectory)}`
  const starting = step('Postgres', server.start, say)
  // One that is starting cannot be stopped yet.
  closers.push(() => starting.catch(() => {}).then(server.stop))
  await starting
  return server.url
}

function shortPath(path: string): string {
  const short = relative(process.cwd(), path)
  return short.startsWith('..') ? path : short
}

async function build(): Promise<HandlerSet> {
  const config = await import('../../esbuild.config.mjs')
  await config.buildPackage()
  await config.buildFunctions()
  return builtHandlers()
}

function sayPrepared(applied: ReadonlyArray<string>): string {
  return applied.length > 0
    ? `Schema made by ${applied.length} migrations, handlers registered`
    : 'Schema up to date, handlers registered'
}

/** Once everything is settled: a line for each poll that found something, the schedule's or another's. */
function showPoll(line: string): void {
  if (!isShowingPolls || !line.includes('"Polled."')) return
  const { claimed, succeeded, retried, dead } = JSON.parse(line) as Record<string, number>
  if (!claimed) return
  const time = paint('dim', new Date().toTimeString().slice(0, 8))
  print(`${time}  poll: ${claimed} claimed, ${succeeded} succeeded, ${retried} retried, ${dead} dead`)
}

function finish({ ids, handled, retried, dead, waiting, seconds }: RunResult, posted: number): Promise<void> {
  const counts = {
    published: ids.length,
    handled,
    retried,
    dead,
    waiting,
    seconds: Number(seconds.toFixed(1)),
  }
  print()
  process.stdout.write(`${JSON.stringify(counts)}\n`)
  return end(ids.length === posted && waiting === 0 ? 0 : 1)
}

function printError(error: unknown): void {
  const message = error instanceof Error ? error.message || String(error.cause ?? error) : String(error)
  const lines = message.split('\n').map((line) => wrap(line))
  print()
  print(paint('red', lines.join('\n')))
}

function stop(code: number): void {
  if (isEnding) return
  print()
  sayLast('Stopping.')
  void end(code)
}

async function end(code: number): Promise<void> {
  if (isEnding) return
  isEnding = true
  for (const close of closers.reverse()) {
    try {
      await close()
    } catch (error) {
      print(paint('red', String(error)))
    }
  }
  process.exit(code)
}
