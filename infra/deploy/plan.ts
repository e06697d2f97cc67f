import { execFile } from 'node:child_process'
import { readFile, rm } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { promisify } from 'node:util'
import { home, project } from '../local/home.ts'
import { readTemplate, type Template } from './template.ts'

/** What a deployment would make, and of what the functions would be made. */
export interface Plan {
  readonly stack: string
  readonly region: string
  readonly template: Template
  readonly database: DatabasePlan
  readonly maxPollers: number
  /** The function wake gets concurrency of its own. */
  readonly isReserved: boolean
}

/** The way to the database: infra/resources/database-*.yml, resolved. */
export interface DatabasePlan {
  readonly host?: unknown
  readonly port?: unknown
  readonly resourceId?: unknown
  readonly vpc?: { readonly subnetIds: unknown; readonly securityGroupIds: unknown }
  readonly poller: SignInPlan
  readonly publisher: SignInPlan
  readonly owner: SignInPlan
}

/** How one kind of function signs in. */
export interface SignInPlan {
  readonly auth: 'iam' | 'secret' | 'url'
  readonly url?: string
}

/** The program `serverless` of this project. */
export const serverless: string = join(project, 'node_modules/serverless/bin/serverless.js')

/** What `serverless deploy` takes and `serverless package` refuses. */
const ofDeploy = new Set(['--force', '--conceal', '--aws-s3-accelerate'])

/**
 * Packages what would be deployed, and reads it.
 * @param args of `serverless deploy`
 * @throws with what `serverless package` says
 */
export async function readPlan(args: ReadonlyArray<string>): Promise<Plan> {
  const folder = join(home, 'deploy')
  await rm(folder, { recursive: true, force: true })
  const known = args.filter((arg) => !ofDeploy.has(arg))
  const command = [serverless, 'package', ...known, '--package', relative(project, folder)]
  await promisify(execFile)(process.execPath, command, { cwd: project }).catch((error) => {
    throw new Error(saidBy(error), { cause: error })
  })
  const state = JSON.parse(await readFile(join(folder, 'serverless-state.json'), 'utf8')) as State
  const { provider, custom, functions } = state.service
  const { name, reservedConcurrency, environment } = functions.wake
  return {
    stack: name.replace(/-wake$/, ''),
    region: provider.region,
    template: await readTemplate(join(folder, 'cloudformation-template-update-stack.json')),
    database: custom.database,
    maxPollers: Number(environment.MAX_POLLERS),
    isReserved: reservedConcurrency != null,
  }
}

/** What is read of the file in which serverless keeps the resolved configuration. */
interface State {
  readonly service: {
    readonly provider: { readonly region: string }
    readonly custom: { readonly database: DatabasePlan }
    readonly functions: {
      readonly wake: { name: string; reservedConcurrency?: unknown; environment: { MAX_POLLERS: unknown } }
    }
  }
}

/** The message in what serverless wrote: from `Error:` on. */
function saidBy({ stdout = '', stderr = '', message }: Error & { stdout?: string; stderr?: string }): string {
  const text = [stdout, stderr].find((one) => one.includes('Error:'))
  return text === undefined ? message : text.slice(text.indexOf('Error:') + 'Error:'.length).trim()
}
