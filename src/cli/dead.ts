import { Argument, Command, InvalidArgumentError } from 'commander'
import { isPattern } from '../handler.ts'
import { redrive } from '../redrive.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import {
  type DeadLetterFilter,
  existingDeadLetters,
  findDeadLetters,
  listDeadLetters,
  readDeadLetter,
} from './dead-letters.ts'
import { CommandError } from './explain-error.ts'
import { count, countOf } from './plain-text.ts'
import { writeTable } from './table.ts'
import { type Terminal, writeJson } from './terminal.ts'
import { relative } from './time-text.ts'
import { writeDeadLetter } from './write-dead-letter.ts'

interface ListOptions extends CommonOptions, DeadLetterFilter {
  readonly limit: number
}

interface RedriveOptions extends CommonOptions, DeadLetterFilter {
  readonly all?: boolean
}

export function deadCommand(terminal: Terminal): Command {
  return new Command('dead')
    .summary('list, show and redrive dead letters')
    .description('Dead letters: events that a handler is done with, without success.')
    .addCommand(listCommand(terminal))
    .addCommand(showCommand(terminal))
    .addCommand(redriveCommand(terminal))
    .addHelpText(
      'after',
      `
Examples:
  $ loopless dead list
  $ loopless dead show 7
  $ loopless dead redrive 7`,
    )
}

function listCommand(terminal: Terminal): Command {
  return addFilter(addCommonOptions(new Command('list')))
    .summary('the dead letters, newest first')
    .description('Lists dead letters, the newest first.')
    .option('--limit <number>', 'that many at most', parseLimit, 50)
    .addHelpText(
      'after',
      `
Examples:
  $ loopless dead list
  $ loopless dead list --handler send-mail --event 'order.*'
  $ loopless dead list --limit 1000 --json | jq -r '.letters[].id'`,
    )
    .action(async (options: ListOptions) => {
      const { total, letters, now } = await withDatabase(terminal, options, async ({ sql, now }) => ({
        ...(await listDeadLetters(sql, options, options.limit)),
        now,
      }))
      if (options.json) return writeJson(terminal, { total, letters })
      if (letters.length === 0) return terminal.write('No dead letters.\n')
      const right = { align: 'right' } as const
      writeTable(
        terminal,
        [
          { title: 'ID', ...right },
          { title: 'EVENT', ...right },
          { title: 'NAME' },
          { title: 'HANDLER' },
          { title: 'REASON' },
          { title: 'DIED' },
          { title: 'ERROR', shrinks: true },
        ],
        letters.map((letter) => [
          letter.id,
          letter.eventId,
          letter.eventName,
          letter.handler,
          letter.reason,
          relative(letter.diedAt, now),
          `${letter.errorClass}: ${letter.errorMessage}`,
        ]),
      )
      if (total > letters.length) terminal.write(`${letters.length} of ${count(total)}: more with --limit\n`)
    })
}

function showCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('show'))
    .summary('one of them with its event and every error')
    .description('Shows a dead letter: its event with the payload, and every failed attempt.')
    .addArgument(new Argument('<id>', 'of the dead letter, as "dead list" shows it').argParser(parseId))
    .addHelpText(
      'after',
      `
Examples:
  $ loopless dead show 7
  $ loopless dead show 7 --json | jq -r .payload`,
    )
    .action(async (id: string, options: CommonOptions) => {
      const { letter, now } = await withDatabase(terminal, options, async ({ sql, now }) => ({
        letter: await readDeadLetter(sql, id),
        now,
      }))
      if (letter === null)
        throw new CommandError(`There is no dead letter ${id}: it was redriven, is too old, or never was.`)
      if (options.json) return writeJson(terminal, letter)
      writeDeadLetter(terminal, letter, now)
    })
}

function redriveCommand(terminal: Terminal): Command {
  return addFilter(addCommonOptions(new Command('redrive')))
    .summary('try some of them again')
    .description(
      'Turns dead letters into deliveries that are due now, attempts counted from 1 again. Name them by their ids, or ' +
        'take all, or all of a handler or an event.',
    )
    .addArgument(new Argument('[ids...]', 'of dead letters, as "dead list" shows them').argParser(collectIds))
    .option('--all', 'every dead letter')
    .addHelpText(
      'after',
      `
Examples:
  $ loopless dead redrive 7 8 9
  $ loopless dead redrive --handler send-mail
  $ loopless dead redrive --all`,
    )
    .action(async (ids: string[], options: RedriveOptions) => {
      const isFiltered = options.handler !== undefined || options.event !== undefined
      if (ids.length === 0 && !options.all && !isFiltered) {
        throw new CommandError('Say which dead letters: ids, --handler, --event, or --all.', 2)
      }
      if (ids.length > 0 && (options.all || isFiltered)) {
        throw new CommandError('Give either ids or --all, --handler and --event, not both.', 2)
      }
      const { redriven, missing } = await withDatabase(terminal, options, async ({ sql, now }) => {
        const existing = ids.length === 0 ? null : await existingDeadLetters(sql, ids)
        const missing = ids.filter((id) => existing?.has(id) === false)
        const chosen = ids.length > 0 ? ids : isFiltered ? await findDeadLetters(sql, options) : undefined
        return { redriven: await redrive(sql, now, chosen), missing }
      })
      if (options.json) writeJson(terminal, { redriven, missing })
      else terminal.write(`Redrove ${countOf(redriven, 'dead letter')}${redriven > 0 ? ', due now' : ''}.\n`)
      if (missing.length > 0) throw new CommandError(`There is no dead letter ${missing.join(', ')}.`)
    })
}

function addFilter(command: Command): Command {
  return command
    .option('--handler <name>', 'only of this handler')
    .option('--event <name>', "only of this event, or of a pattern such as 'order.*'", parsePattern)
}

function parseId(text: string): string {
  if (/^\d{1,18}$/.test(text)) return BigInt(text).toString()
  throw new InvalidArgumentError('Expected an id, a whole number.')
}

function collectIds(text: string, others: string[] | undefined): string[] {
  return [...(others ?? []), parseId(text)]
}

function parsePattern(text: string): string {
  if (isPattern(text)) return text
  throw new InvalidArgumentError('Expected an event name, or a pattern such as "order.*".')
}

function parseLimit(text: string): number {
  const limit = Number(text)
  if (Number.isInteger(limit) && limit >= 1 && limit <= 100_000) return limit
  throw new InvalidArgumentError('Expected a whole number of 1–100000.')
}
