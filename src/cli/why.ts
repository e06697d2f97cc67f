import { Argument, Command, InvalidArgumentError } from 'commander'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import type { Failure } from './dead-letters.ts'
import { type EventHistory, type MissingEvent, readHistory } from './event-history.ts'
import { CommandError } from './explain-error.ts'
import { count } from './plain-text.ts'
import { writeFacts, writeTable } from './table.ts'
import { bold, type Terminal, writeJson } from './terminal.ts'
import { duration, instant, relative } from './time-text.ts'
import { batchFacts, handlerStates, verdict } from './why-text.ts'

export function whyCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('why'))
    .summary('everything known of one event')
    .description(
      'Tells what became of an event: when it was published and by which transaction, which batch claimed it, what its ' +
        'handlers did, every failed attempt, and what happens next.',
    )
    .addArgument(new Argument('<id>', 'of the event, as publish returned it').argParser(parseId))
    .addHelpText(
      'after',
      `
Examples:
  $ loopless why 12
  $ loopless why 12 --json | jq -r .state

States: unclaimed, leased, open (given back, or its poller died), waiting (for
a handler, as a delivery), dead, unhandled, handled.`,
    )
    .action(async (id: string, options: CommonOptions) => {
      const { history, now } = await withDatabase(terminal, options, async ({ sql, now }) => ({
        history: await readHistory(sql, id),
        now,
      }))
      if ('newestId' in history) return sayMissing(terminal, id, history, now)
      if (options.json) return writeJson(terminal, history)
      writeHistory(terminal, history, now)
    })
}

function writeHistory(terminal: Terminal, history: EventHistory, now: Date): void {
  const { event, batches, failures, dead } = history
  terminal.write(`${bold(terminal, `Event ${event.id} ${event.name}: ${verdict(history, now)}`)}\n\n`)
  const by = event.xid === '0' ? 'in an earlier cluster' : `by transaction ${event.xid}`
  const facts: [string, string][] = [['Published', `${instant(event.publishedAt, now)} ${by}`]]
  if (event.dueAt !== null) facts.push(['Delayed', `until ${instant(event.dueAt, now)}`])
  if (event.dedupeKey !== null) facts.push(['Dedupe key', event.dedupeKey])
  if (event.headers !== null) facts.push(['Headers', JSON.stringify(event.headers)])
  facts.push(['Payload', `${event.payload.slice(0, 500)}`])
  facts.push(...batches.flatMap((batch) => batchFacts(batch, now)))
  writeFacts(terminal, facts)
  writeHandlers(terminal, history, now)
  writeFailures(terminal, failures, now)
  for (const { id, attempts } of dead) {
    terminal.write(`\nDead after ${count(attempts)}: loopless dead show ${id}, loopless dead redrive ${id}\n`)
  }
}

function writeHandlers(terminal: Terminal, history: EventHistory, now: Date): void {
  const states = handlerStates(history, now)
  if (states.length === 0) return
  terminal.write('\n')
  writeTable(
    terminal,
    [{ title: 'HANDLER' }, { title: 'STATE', shrinks: true }, { title: 'WHEN' }],
    states.map(({ name, state, at }) => [name, state, at?.toISOString() ?? '']),
  )
}

function writeFailures(terminal: Terminal, failures: ReadonlyArray<Failure>, now: Date): void {
  if (failures.length === 0) return
  terminal.write('\n')
  writeTable(
    terminal,
    [
      { title: 'ATTEMPT', align: 'right' },
      { title: 'HANDLER' },
      { title: 'FAILED' },
      { title: 'TOOK', align: 'right' },
      { title: 'ERROR', shrinks: true },
    ],
    failures.map(({ attempt, handler, beganAt, endedAt, errorClass, errorMessage }) => [
      String(attempt),
      handler,
      relative(endedAt, now),
      duration(endedAt.getTime() - beganAt.getTime()),
      `${errorClass}: ${errorMessage}`,
    ]),
  )
}

function sayMissing(terminal: Terminal, id: string, { newestId, failures }: MissingEvent, now: Date): never {
  if (BigInt(id) > BigInt(newestId)) {
    throw new CommandError(`There is no event ${id}: the newest id given out is ${newestId}.`)
  }
  writeFailures(terminal, failures, now)
  throw new CommandError(
    `Event ${id} is not in the log: its transaction was rolled back or is still open, or it was settled long ago and retention removed it.`,
  )
}

function parseId(text: string): string {
  if (/^\d{1,18}$/.test(text)) return BigInt(text).toString()
  throw new InvalidArgumentError('Expected the id of an event, a whole number.')
}
