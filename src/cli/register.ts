import { Command } from 'commander'
import { register } from '../register.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { builtHandlers, loadHandlers } from './load-handlers.ts'
import { countOf } from './plain-text.ts'
import { writeTable } from './table.ts'
import { type Terminal, writeJson } from './terminal.ts'

interface RegisterOptions extends CommonOptions {
  readonly handlers: string
}

export function registerCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('register'))
    .summary('let pollers of the built handlers claim')
    .description(
      'Registers the handlers of a deployment, by name and pattern. From then on a poller with other handlers claims ' +
        'nothing, so that no event misses a new handler. Run it after migrate, before publishers and pollers.',
    )
    .option('--handlers <path>', 'the built handlers', builtHandlers)
    .addHelpText(
      'after',
      `
Examples:
  $ loopless register
  $ loopless register --handlers build/handlers.js --json`,
    )
    .action(async (options: RegisterOptions) => {
      const set = await loadHandlers(options.handlers)
      await withDatabase(terminal, options, ({ sql, now }) => register(sql, set, now))
      const handlers = set.handlers.map(({ name, pattern }) => ({ name, pattern }))
      if (options.json) return writeJson(terminal, { handlerSet: set.hash, handlers })
      terminal.write(`Registered ${countOf(handlers.length, 'handler')}, set ${set.hash.slice(0, 12)}.\n`)
      if (handlers.length === 0) return
      terminal.write('\n')
      writeTable(
        terminal,
        [{ title: 'HANDLER' }, { title: 'TAKES' }],
        handlers.map(({ name, pattern }) => [name, pattern]),
      )
    })
}
