import { Argument, Command, InvalidArgumentError } from 'commander'
import { isEventName } from '../event.ts'
import { isDueTime } from '../publish-options.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { CommandError } from './explain-error.ts'
import { oneLine } from './plain-text.ts'
import { type Terminal, writeJson } from './terminal.ts'

interface PublishOptions extends CommonOptions {
  readonly dueAt?: Date
  readonly dedupeKey?: string
  readonly header?: Readonly<Record<string, string>>
}

export function publishCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('publish'))
    .summary('publish one event')
    .description(
      'Publishes an event in a transaction of its own. The payload is kept to the letter and checked by no schema.',
    )
    .addArgument(new Argument('<name>', 'dotted lower-case words').argParser(parseName))
    .argument('<json>', 'the payload; "-": read it from the standard input')
    .option('--due-at <time>', 'let it wait until then; ISO 8601, with a zone', parseTime)
    .option('--dedupe-key <key>', 'write nothing if the key was used in the last 7 days', parseKey)
    .option('--header <key=value>', 'for the handlers; may be given again', addHeader)
    .addHelpText(
      'after',
      `
Examples:
  $ loopless publish order.placed '{"orderId": 1}'
  $ loopless publish order.placed '{"orderId": 2}' --dedupe-key order-2
  $ loopless publish order.reminded '{}' --due-at 2030-01-01T08:00:00Z
  $ jq -c .order export.json | loopless publish order.placed -`,
    )
    .action(async (name: string, json: string, options: PublishOptions) => {
      const payload = json === '-' ? await terminal.readInput() : json
      checkJson(payload)
      const id = await publishText(terminal, options, name, payload)
      if (options.json) return writeJson(terminal, { id, name })
      terminal.write(`${published(name, id, options)}\nSee what becomes of it: loopless why ${id}\n`)
    })
}

/** By SQL: the library would write the payload anew. */
async function publishText(
  terminal: Terminal,
  options: PublishOptions,
  name: string,
  payload: string,
): Promise<string> {
  const { dueAt, dedupeKey, header } = options
  return withDatabase(terminal, options, async ({ sql }) => {
    const [row] = await sql<{ id: string }[]>`
      select loopless.publish(
        ${name}, ${payload}::text::json,
        due_at => ${dueAt ?? null},
        dedupe_key => ${dedupeKey ?? null},
        headers => ${header === undefined ? null : JSON.stringify(header)}::text::json
      )::text as id`
    return row?.id ?? ''
  })
}

function published(name: string, id: string, { dueAt, dedupeKey }: PublishOptions): string {
  const until = dueAt === undefined ? '' : `, to be handled at ${dueAt.toISOString()}`
  if (dedupeKey === undefined) return `Published ${name} as event ${id}${until}.`
  return `Event ${id} holds the key "${oneLine(dedupeKey)}" of ${name}: published now, or earlier with the same key.`
}

function checkJson(payload: string): void {
  try {
    JSON.parse(payload)
  } catch (error) {
    throw new CommandError(`Expected the payload to be JSON: ${oneLine((error as Error).message)}.`, 2)
  }
}

function parseName(name: string): string {
  if (isEventName(name)) return name
  throw new InvalidArgumentError(
    'Expected 1–200 characters: dotted lower-case words of letters, digits, "_" and "-".',
  )
}

function parseTime(text: string): Date {
  const time = new Date(text)
  if (!/^\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*(Z|[+-]\d\d:?\d\d)$/i.test(text) || Number.isNaN(time.getTime())) {
    throw new InvalidArgumentError('Expected a time with a zone, like 2030-01-01T08:00:00Z.')
  }
  const day = text.slice(0, 10)
  // a Date takes the 31st of any month, for a day of the next
  if (!new Date(day).toISOString().startsWith(day)) {
    throw new InvalidArgumentError(`Expected a day that exists, got ${day}.`)
  }
  if (isDueTime(time)) return time
  throw new InvalidArgumentError('Expected a time in the years 1–9999 (UTC).')
}

function parseKey(key: string): string {
  if (key.length >= 1 && key.length <= 512) return key
  throw new InvalidArgumentError('Expected 1–512 characters.')
}

function addHeader(pair: string, others: Readonly<Record<string, string>> = {}): Record<string, string> {
  const [, key, value] = /^([^=]+)=(.*)$/s.exec(pair) ?? []
  if (key === undefined || value === undefined) throw new InvalidArgumentError('Expected key=value.')
  return { ...others, [key]: value }
}
