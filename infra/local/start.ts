// `npm start`: an event bus on this machine, with real webhooks flowing through it. `--once`: the same, and then it
// ends. LOOPLESS_HOME, LOOPLESS_POSTGRES_PORT and DATABASE_URL say where; see home.ts and postgres.ts.

import { relative } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect, type HandlerSet, type Sql } from '../../src/index.ts'
import { startChat } from './chat.ts'
import { handledLog, readNextDue } from './handled.ts'
import { owner, takeHome } from './home.ts'
import { type Latencies, measureLatency, probeLatency } from './latency.ts'
import { startOffline } from './offline.ts'
import { builtHandlers, localPostgres, prepareDatabase } from './postgres.ts'
import { type RunResult, runWebhooks } from './run.ts'
import { paint, print, sayLast, step, wrap } from './screen.ts'
import { printLatencies, printNextSteps, printRuns, printSummary } from './summary.ts'
import { endWaking, prepareWaking, startPolling, startWaking, type Waking } from './waking.ts'
import { signedWebhooks } from './webhooks.ts'

const secret = process.env['GITHUB_WEBHOOK_SECRET'] || 'for this machine only'
const isOnce = process.argv.includes('--once')

/** What was started, to be stopped in the opposite order. */
const closers: (() => unknown)[] = []
let isEnding = false
const handled = handledLog()
let waking: Waking | undefined

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
  const left = await step('Waking', () => prepareWaking(sql), sayWaking)
  if (left === undefined) closers.push(() => endWaking(sql))
  else print(paint('dim', wrap(`${left} That is left as it is: here polls are started by hand.`)))
  const environment = { DATABASE_URL: databaseUrl, GITHUB_WEBHOOK_SECRET: secret, CHAT_URL: chat.url }
  const offline = await startOffline(environment, hear)
  closers.push(() => offline.stop())
  await step('Serverless', offline.ready, () => `serverless-offline on ${offline.url}`)
  const started =
    left === undefined ? await startWaking(databaseUrl, offline, warn) : startPolling(offline, warn)
  waking = started
  closers.push(started.stop)

  const webhooks = signedWebhooks(secret)
  print()
  print(`Posting ${webhooks.length} real GitHub webhooks, signed, to ${paint('dim', '/webhooks/github')}`)
  print()
  const result = await runWebhooks(sql, `${offline.url}/webhooks/github`, webhooks, started.published)
  const latencies = {
    busy: await measureLatency(sql, handled.take()),
    idle: started.wakes === null ? null : await probeLatency(sql, handled),
  }
  await printSummary(sql, handlers, result, chat)
  printLatencies(latencies, started.wakes)
  if (isOnce) return finish(result, webhooks.length, latencies)
  await printNextSteps(sql, result, process.env['DATABASE_URL'] ? undefined : databaseUrl)
  print()
  print(paint('dim', `webhooks  ${offline.url}/webhooks/github`))
  print(paint('dim', `log       ${shortPath(offline.logFile)}`))
  print()
  print(`Everything stays up; a poll runs each minute. ${paint('bold', 'Ctrl-C')} stops it.`)
  throw new Error(await Promise.race([offline.ended, showHandled(sql)]))
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

function sayWaking(left: string | undefined): string {
  return left === undefined
    ? 'Publishing wakes a function, by a notification'
    : 'Publishing wakes nobody here'
}

/** Each line that the functions write: what handlers did, and when something is due before the schedule polls. */
function hear(line: string): void {
  handled.hear(line)
  const due = readNextDue(line)
  if (due !== undefined) waking?.wakeAt(due)
}

function warn(error: unknown): void {
  if (!isEnding) print(paint('yellow', wrap(String(error))))
}

/** From now on: a line for what was handled, and how soon. */
async function showHandled(sql: Sql): Promise<never> {
  for (;;) {
    await handled.some()
    await sleep(50) // what belongs together comes within moments
    const runs = handled.take()
    try {
      printRuns(runs, await measureLatency(sql, runs))
    } catch (error) {
      warn(error)
    }
  }
}

function finish(result: RunResult, posted: number, { busy, idle }: Latencies): Promise<void> {
  const { ids, handled, retried, dead, waiting, seconds } = result
  const counts = {
    published: ids.length,
    handled,
    retried,
    dead,
    waiting,
    seconds: Number(seconds.toFixed(1)),
    wakes: waking?.wakes ?? null,
    latencyMs: idle && Number(idle.p50.toFixed(1)),
    busyLatencyMs: busy && Number(busy.p50.toFixed(1)),
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
