// npm run deploy: packages the stack, checks what it needs, and has serverless deploy it; with --dry-run it only tells.

import { spawnSync } from 'node:child_process'
import { project } from '../local/home.ts'
import { paint, print, step, wrap } from '../local/screen.ts'
import { checkPlan } from './checks.ts'
import type { Finding } from './finding.ts'
import { type Plan, readPlan, serverless } from './plan.ts'
import { countByType } from './template.ts'

const isDryRun = process.argv.includes('--dry-run')
const args = process.argv.slice(2).filter((arg) => arg !== '--dry-run')

process.stdout.on('error', () => process.exit(1)) // nobody reads on
try {
  process.exitCode = await main()
} catch (error) {
  printError(error instanceof Error ? error.message : String(error))
  process.exitCode = 1
}

async function main(): Promise<number> {
  print()
  const stage = option('--stage') ?? option('-s')
  if (stage === undefined || stage === 'local') {
    throw new Error(
      'Expected --stage and a name, such as `npm run deploy -- --stage production`: each stage is a bus of its own. ' +
        'The stage `local` is for this machine.',
    )
  }
  // The clients of the checks take the profile from there, serverless from its option.
  const profile = option('--aws-profile')
  if (profile !== undefined) process.env['AWS_PROFILE'] = profile
  const plan = await step('Packages', () => readPlan(args), say)
  const findings = await step(
    'Checks',
    () => checkPlan(plan),
    () => 'Permissions, network and database looked at',
  )
  printFindings(findings)
  const isRefused = findings.some(({ level }) => level === 'error')
  if (isDryRun) printPlan(plan)
  if (isRefused) {
    print()
    print(`Nothing was deployed. Mend what is marked ${paint('red', '✗')} first.`)
    return 1
  }
  if (isDryRun) {
    print()
    print('Nothing was deployed: a dry run. Nothing was found that would fail.')
    return 0
  }
  print()
  const { status } = spawnSync(process.execPath, [serverless, 'deploy', ...args], {
    cwd: project,
    stdio: 'inherit',
  })
  return status ?? 1
}

/** The value of an option, given as `--name value` or `--name=value`. */
function option(name: string): string | undefined {
  const at = args.findIndex((arg) => arg === name || arg.startsWith(`${name}=`))
  if (at < 0) return undefined
  return args[at] === name ? args[at + 1] : args[at]?.slice(name.length + 1)
}

function say({ stack, region, template }: Plan): string {
  return `${Object.keys(template.Resources).length} resources packaged for the stack ${stack} in ${region}`
}

function printFindings(findings: ReadonlyArray<Finding>): void {
  for (const { level, text } of findings) {
    print()
    const mark = level === 'error' ? paint('red', '✗ ') : paint('yellow', '· ')
    print(
      `${mark}${text
        .split('\n')
        .map((line) => wrap(line))
        .join('\n')}`,
    )
  }
}

function printPlan({ stack, region, template }: Plan): void {
  print()
  print(`The stack ${paint('bold', stack)} in ${region} would have:`)
  for (const { type, names } of countByType(template)) {
    print()
    print(`${String(names.length).padStart(3)} ${type}`)
    print(wrap(names.join(', '), 72).replace(/^/gm, paint('dim', '    ')))
  }
}

function printError(message: string): void {
  print()
  print(
    paint(
      'red',
      message
        .split('\n')
        .map((line) => wrap(line))
        .join('\n'),
    ),
  )
}
