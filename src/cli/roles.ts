import { Command } from 'commander'
import { type CreatedRole, createRoles, defaultRoleNames } from '../db/roles.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { countOf } from './plain-text.ts'
import { writeTable } from './table.ts'
import { type Terminal, writeJson } from './terminal.ts'

interface CreateOptions extends CommonOptions {
  readonly publisher: string
  readonly poller: string
  readonly viewer: string
  readonly iam?: boolean
}

export function rolesCommand(terminal: Terminal): Command {
  return new Command('roles')
    .summary('create the roles that publish, poll and look')
    .description('Roles of the database, one for each part: to publish, to poll, to look.')
    .addCommand(createCommand(terminal))
    .addHelpText(
      'after',
      `
Examples:
  $ loopless roles create`,
    )
}

function createCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('create'))
    .summary('create what is missing, and grant it its rights')
    .description(
      'Creates a role to publish, one to poll and one to look, and grants each what it needs and no more. What exists ' +
        'is kept, so name roles of your own if you have some. New roles can log in and have no password. Run it after ' +
        'migrate, as the same role; creating takes CREATEROLE. Later migrations grant what they add.',
    )
    .option('--publisher <role>', 'may publish, and nothing else', defaultRoleNames.publisher)
    .option('--poller <role>', 'may poll, prune, publish and look', defaultRoleNames.poller)
    .option('--viewer <role>', 'may look', defaultRoleNames.viewer)
    .option('--iam', 'let them sign in by tokens of RDS IAM, and no longer by a password')
    .addHelpText(
      'after',
      `
Examples:
  $ loopless roles create
  $ loopless roles create --iam
  $ loopless roles create --publisher shop --poller worker --viewer looker`,
    )
    .action(async ({ publisher, poller, viewer, iam = false, ...options }: CreateOptions) => {
      const names = { publisher, poller, viewer }
      const roles = await withDatabase(terminal, options, ({ sql, now }) =>
        createRoles(sql, { now, names, withTokens: iam }),
      )
      if (options.json) return writeJson(terminal, { roles })
      writeTable(
        terminal,
        [{ title: 'ROLE', shrinks: true }, { title: 'PART' }, { title: 'ROLE IS' }, { title: 'GRANTED' }],
        roles.map((role) => [role.name, role.part, role.isCreated ? 'new' : 'kept', grantedText(role)]),
      )
    })
}

function grantedText({ granted }: CreatedRole): string {
  return granted.length === 0 ? 'had all its rights' : countOf(granted.length, 'right')
}
