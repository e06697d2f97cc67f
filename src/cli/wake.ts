import { Command, InvalidArgumentError } from 'commander'
import { setWake, unsetWake } from '../wake-target.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { CommandError } from './explain-error.ts'
import { type Terminal, writeJson } from './terminal.ts'
import { duration } from './time-text.ts'
import { tryWake, type WakeTrial } from './try-wake.ts'

interface SetOptions extends CommonOptions {
  readonly function: string
  readonly region?: string
  readonly timeoutMs: number
}

export function wakeCommand(terminal: Terminal): Command {
  return new Command('wake')
    .summary('have publishes invoke a poller, or not')
    .description(
      'Whom a publish invokes when no poller is awake, so that handlers start within milliseconds. With nobody set, the ' +
        'schedule alone polls. It takes the extension aws_lambda of RDS; publishing never fails because waking did.',
    )
    .addCommand(setCommand(terminal))
    .addCommand(offCommand(terminal))
    .addCommand(testCommand(terminal))
    .addHelpText(
      'after',
      `
Examples:
  $ loopless wake set --function \\
      arn:aws:lambda:eu-central-1:123456789012:function:shop-wake
  $ loopless wake test
  $ loopless wake off`,
    )
}

function setCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('set'))
    .summary('set the function that publishes invoke')
    .description(
      'Sets the Lambda function that a publish invokes when no poller is awake, in place of any other.',
    )
    .requiredOption('--function <arn>', 'its ARN or name')
    .option('--region <region>', 'its region (default: of the ARN, or of the database)')
    .option('--timeout-ms <number>', 'a publish waits no longer for Lambda', parseTimeout, 1_000)
    .addHelpText(
      'after',
      `
Examples:
  $ loopless wake set --function \\
      arn:aws:lambda:eu-central-1:123456789012:function:shop-wake
  $ loopless wake set --function shop-wake --region eu-central-1`,
    )
    .action(async (options: SetOptions) => {
      const { function: functionArn, region, timeoutMs } = options
      const target = { functionArn, timeoutMs, ...(region !== undefined && { region }) }
      await withDatabase(terminal, options, ({ sql, now }) => setWake(sql, now, target))
      if (options.json) return writeJson(terminal, { functionArn, region: region ?? null, timeoutMs })
      terminal.write('A publish invokes it when no poller is awake.\nTry it: loopless wake test\n')
    })
}

function offCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('off'))
    .summary('have publishes invoke nobody')
    .description('From now on publishes invoke nobody: the schedule alone polls.')
    .addHelpText(
      'after',
      `
Examples:
  $ loopless wake off`,
    )
    .action(async (options: CommonOptions) => {
      const wasSet = await withDatabase(terminal, options, ({ sql }) => unsetWake(sql))
      if (options.json) return writeJson(terminal, { wasSet })
      terminal.write(`${wasSet ? '' : 'Nothing was set. '}The schedule alone polls.\n`)
    })
}

function testCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('test'))
    .summary('send a wake now, and tell what came of it')
    .description(
      'Has the database invoke the function now, as a publish would, whoever is awake. Tells the status that Lambda ' +
        'answered and how long it took, or what is wrong and how to mend it.',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ loopless wake test
  $ loopless wake test --json | jq .tookMs`,
    )
    .action(async (options: CommonOptions) => {
      const trial = await withDatabase(terminal, options, ({ sql }) => tryWake(sql))
      if (trial === null) throw new CommandError('Nothing is set: loopless wake set --function ARN.')
      if (options.json) writeJson(terminal, trial)
      const { failure, tookMs } = trial
      if (failure !== null) {
        throw new CommandError(
          `The wake failed after ${duration(tookMs)}: ${failure.message}. ${failure.mend}`,
        )
      }
      if (!options.json) terminal.write(describe(trial))
    })
}

function describe({ status, tookMs, isNotification }: WakeTrial): string {
  if (isNotification) {
    return `Notified in ${duration(tookMs)}: this is a stand-in for aws_lambda, and whoever listens invokes the function.\n`
  }
  return `Lambda took the wake: status ${status}, in ${duration(tookMs)}. A publish waits as long.\n`
}

function parseTimeout(text: string): number {
  const timeoutMs = Number(text)
  if (Number.isInteger(timeoutMs) && timeoutMs >= 1 && timeoutMs <= 60_000) return timeoutMs
  throw new InvalidArgumentError('Expected a whole number of 1–60000.')
}
