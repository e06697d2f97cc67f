import { execFile } from 'node:child_process'
import { rm } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { promisify } from 'node:util'
import { project } from '../local/home.ts'

/** The parameters of each kind of deployment whose template differs. The values are made up; ids have AWS's form. */
export const variants = {
  url: { database: 'url', databaseUrl: 'postgres://bus@database.example/loopless' },
  existing: {
    database: 'existing',
    databaseHost: 'database.example',
    databaseResourceId: 'cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ',
    subnetIds: 'subnet-0a1b2c3d4e5f60001,subnet-0a1b2c3d4e5f60002',
    securityGroupIds: 'sg-0a1b2c3d4e5f60001',
  },
  'existing-secret': {
    database: 'existing',
    databaseHost: 'database.example',
    databaseAuth: 'secret',
    databaseSecretArn: secretArn('poller-a1b2c3'),
    databasePublisherSecretArn: secretArn('publisher-a1b2c3'),
    databaseOwnerSecretArn: secretArn('owner-a1b2c3'),
    subnetIds: 'subnet-0a1b2c3d4e5f60001,subnet-0a1b2c3d4e5f60002',
    securityGroupIds: 'sg-0a1b2c3d4e5f60001',
  },
  new: { database: 'new' },
} satisfies Record<string, Record<string, string>>

/** Which of them. */
export type Variant = keyof typeof variants

function secretArn(name: string): string {
  return `arn:aws:secretsmanager:eu-central-1:123456789012:secret:${name}`
}

/**
 * Packages a variant, as `serverless deploy` would, for the stage `production`.
 * @param folder where to, in the project
 * @returns the path of the template
 */
export async function packageVariant(variant: Variant, folder: string): Promise<string> {
  await rm(folder, { recursive: true, force: true })
  const params = Object.entries({ githubWebhookSecret: 'secret of this webhook', ...variants[variant] })
  const args = ['package', '--stage', 'production', '--package', relative(project, folder)]
  for (const [name, value] of params) args.push('--param', `${name}=${value}`)
  const program = join(project, 'node_modules/serverless/bin/serverless.js')
  await promisify(execFile)(process.execPath, [program, ...args], { cwd: project }).catch(
    ({ code, signal, stdout, stderr }) => {
      throw new Error(`serverless package ended with ${signal ?? code}:\n${stdout}\n${stderr}`)
    },
  )
  return join(folder, 'cloudformation-template-update-stack.json')
}
