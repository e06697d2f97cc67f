import { Command, CommanderError } from 'commander'
import { deadCommand } from './dead.ts'
import { CommandError, explainError } from './explain-error.ts'
import { migrateCommand } from './migrate.ts'
import { oneLine } from './plain-text.ts'
import { pollCommand } from './poll.ts'
import { publishCommand } from './publish.ts'
import { registerCommand } from './register.ts'
import { rolesCommand } from './roles.ts'
import { statusCommand } from './status.ts'
import type { Terminal } from './terminal.ts'
import { readVersion } from './version.ts'
import { wakeCommand } from './wake.ts'
import { whyCommand } from './why.ts'

const about = `
The database comes from DATABASE_URL or --database-url. Every command answers
programs with --json. Exit codes: 0 done, 1 failed, 2 used in a wrong way.

Examples:
  $ export DATABASE_URL=postgres://postgres@127.0.0.1:15432/postgres
  $ loopless migrate
  $ loopless publish order.placed '{"orderId": 1}'
  $ loopless status
  $ loopless why 1`

/**
 * Runs one command line, without `node` and the script.
 * @returns the exit code: 0 done, 1 failed, 2 used in a wrong way; what failed is said in one line on the standard error
 */
export async function runCommand(argv: ReadonlyArray<string>, terminal: Terminal): Promise<0 | 1 | 2> {
  try {
    await programFor(terminal).parseAsync([...argv], { from: 'user' })
    return 0
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
    terminal.writeError(`loopless: ${explainError(error)}\n`)
    if (terminal.env['LOOPLESS_DEBUG']) terminal.writeError(`${(error as Error).stack}\n`)
    return error instanceof CommandError ? error.exitCode : 1
  }
}

function programFor(terminal: Terminal): Command {
  const program = new Command('loopless')
    .description('An event bus in Postgres for AWS Lambda.')
    .version(readVersion(), '-V, --version', 'the version')
    .helpOption('-h, --help', 'what there is, with examples')
    .addHelpText('after', about)
  for (const make of [
    migrateCommand,
    rolesCommand,
    registerCommand,
    publishCommand,
    pollCommand,
    statusCommand,
    deadCommand,
    whyCommand,
    wakeCommand,
  ]) {
    program.addCommand(make(terminal))
  }
  everyCommand(program, (command) => adapt(command, terminal))
  return program
}

function everyCommand(command: Command, visit: (command: Command) => void): void {
  visit(command)
  for (const child of command.commands) everyCommand(child, visit)
}

/** Commander writes to our terminal, says what is wrong in one line and leaves the exit to us. */
function adapt(command: Command, terminal: Terminal): void {
  const isGroup = command.commands.length > 0
  command
    .exitOverride()
    .helpCommand(false)
    .helpOption('-h, --help', 'what there is, with examples')
    .configureHelp({ showGlobalOptions: false })
    .configureOutput({
      writeOut: (text) => terminal.write(text),
      writeErr: (text) => terminal.writeError(text),
      getOutHelpWidth: () => 80,
      getErrHelpWidth: () => 80,
      getOutHasColors: () => terminal.isColoured,
      getErrHasColors: () => terminal.isColoured,
      outputError: (text, write) => write(`loopless: ${oneLine(text.replace(/^error: /, ''))}\n`),
    })
  if (isGroup) command.usage('<command> [options]')
}
