import { Command } from 'commander'
import { migrate } from '../db/migrate.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { type Terminal, writeJson } from './terminal.ts'

export function migrateCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('migrate'))
    .summary('bring the schema up to this version')
    .description(
      'Applies the migrations that the database lacks, each in its own transaction. Run it before a deployment; ' +
        'several at once wait for each other. It needs no superuser: the owner of the database will do.',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ loopless migrate
  $ loopless migrate --database-url postgres://owner@db.example.com/shop`,
    )
    .action(async (options: CommonOptions) => {
      const applied = await withDatabase(terminal, options, ({ sql }) => migrate(sql))
      if (options.json) return writeJson(terminal, { applied })
      for (const name of applied) terminal.write(`Applied ${name}\n`)
      terminal.write('The schema is up to date.\n')
    })
}
