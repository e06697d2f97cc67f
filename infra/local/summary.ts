import type { HandlerSet, Sql } from '../../src/index.ts'
import type { Chat } from './chat.ts'
import type { HandledRun } from './handled.ts'
import type { Latencies, Latency } from './latency.ts'
import { type DeadLetter, readDeadLetters, readFailures, readNames } from './progress.ts'
import type { RunResult } from './run.ts'
import { paint, print, table, wrap } from './screen.ts'

/** Says what became of the run's events: a row for each handler, then what failed and why. */
export async function printSummary(
  sql: Sql,
  handlers: HandlerSet,
  result: RunResult,
  chat: Chat,
): Promise<void> {
  const { ids, waiting, retried, dead } = result
  const settled = waiting === 0 ? 'All settled' : `${waiting} events still wait`
  print()
  print(`${paint('bold', settled)} after ${result.seconds.toFixed(1)} s. What each handler did:`)
  print()
  print(await handlerTable(sql, handlers, ids))
  if (retried > 0) explainRetries(retried, chat)
  if (dead > 0) for (const letter of await readDeadLetters(sql, ids)) explainDeadLetter(letter)
}

async function handlerTable(sql: Sql, handlers: HandlerSet, ids: ReadonlyArray<string>): Promise<string> {
  const names = await readNames(sql, ids)
  const failures = new Map((await readFailures(sql, ids)).map((failure) => [failure.handler, failure]))
  const rows = handlers.handlers.map(({ name, pattern }) => {
    const { retried, dead } = failures.get(name) ?? { retried: 0, dead: 0 }
    const matching = names
      .filter((event) => handlers.route(event.name).some((handler) => handler.name === name))
      .reduce((sum, { count }) => sum + count, 0)
    return [name, pattern, matching - dead, retried, dead]
  })
  return table(['handler', 'takes', 'handled', 'retried', 'dead'], rows)
}

function explainRetries(retried: number, { refused, announced }: Chat): void {
  print()
  print(
    wrap(
      `${paint('yellow', retried === 1 ? 'A retry.' : `${retried} retries.`)} announce-issue posts to a chat, and for a while the chat answered ` +
        `503 (${refused} times). Each failure was recorded, and only that handler ran again: about 1 s later, then 2 s. ` +
        `Now the chat has ${announced} announcements, none of them twice.`,
    ),
  )
}

function explainDeadLetter({ eventId, eventName, handler, reason, message }: DeadLetter): void {
  print()
  print(
    wrap(
      `${paint('red', 'A dead letter.')} ${handler} is done with event ${eventId}, ${eventName}, without success:`,
    ),
  )
  print(paint('dim', wrap(message, 72).replaceAll(/^/gm, '  ')))
  if (reason === 'invalid') {
    print(
      wrap(
        'GitHub sends null when an issue has no text; the schema in functions/events.ts asks for a string. The payload ' +
          'would not fit the next time either, so it was not retried. The other handlers got the event.',
      ),
    )
  }
}

/** Says how soon handlers were called, and how often a poller was woken for it. */
export function printLatencies({ busy, idle }: Latencies, wakes: number | null): void {
  const shown = idle ?? busy
  if (shown === null) return
  const how =
    idle === null ? 'at the median of these' : `when nothing else goes on, at the median of ${idle.events}`
  const flow = idle === null || busy === null ? '' : ` In the flow of webhooks it was ${milliseconds(busy)}.`
  const woken =
    wakes === null ? '' : ` The database woke a poller ${wakes === 1 ? 'once' : `${wakes} times`} in all.`
  print()
  print(
    wrap(`${paint('bold', `${milliseconds(shown)} from ${shown.since} to handler`)} ${how}.${flow}${woken}`),
  )
}

function milliseconds({ p50 }: Latency): string {
  return `${p50 < 10 ? p50.toFixed(1) : Math.round(p50)} ms`
}

/** A line for what was handled just now, in one go. */
export function printRuns(runs: ReadonlyArray<HandledRun>, latency: Latency | null): void {
  const names = new Map(runs.map(({ eventId, eventName }) => [eventId, eventName]))
  const [[id, name] = ['', '']] = names
  const failed = runs.filter(({ outcome }) => outcome === 'failed').length
  const what = names.size === 1 ? `${name} (event ${id})` : `${names.size} events`
  const how = failed === 0 ? 'handled' : `${failed} of ${runs.length} runs failed`
  const when =
    latency === null
      ? ''
      : `, ${milliseconds(latency)} from ${latency.since} to handler${latency.events > 1 ? ' (median)' : ''}`
  const time = paint('dim', new Date().toTimeString().slice(0, 8))
  print(wrap(`${time}  ${what} ${how}${when}`))
}

/**
 * Says what a stranger may try; the commands work as they stand.
 *
 * @param databaseUrl what the commands need as DATABASE_URL; undefined: it is set, and may hold a password
 */
export async function printNextSteps(sql: Sql, { ids }: RunResult, databaseUrl?: string): Promise<void> {
  const [letter] = await readDeadLetters(sql, ids)
  print()
  print(`${paint('bold', 'Try next')}, in another terminal:`)
  if (databaseUrl !== undefined) printCommands([`export DATABASE_URL=${databaseUrl}`])
  print()
  print('Publish, with any SQL client or from the shell; the handlers run at once:')
  printCommands([
    `select loopless.publish('order.placed', '{"orderId": 1}');`,
    `npx loopless publish order.placed '{"orderId": 1}'`,
  ])
  if (letter !== undefined) {
    print()
    print('See the dead letters, and everything known of that event:')
    printCommands(['npx loopless dead list', `npx loopless why ${letter.eventId}`])
    print()
    print(
      wrap(
        'Mend the schema in functions/events.ts (body: v.nullable(v.string())), stop this with Ctrl-C, start it ' +
          'again, and have the dead letter handled:',
      ),
    )
    printCommands(['npx loopless dead redrive --all'])
  }
  print()
  print('Add a handler: a module in functions/handlers/. See docs/handlers.md.')
}

function printCommands(commands: ReadonlyArray<string>): void {
  for (const command of commands) print(`  ${paint('cyan', command)}`)
}
