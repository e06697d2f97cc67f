import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { packaging } from './support/packaging.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const home = await mkdtemp(join(root, '.esbuild/deploy-'))
afterAll(() => rm(home, { recursive: true, force: true }))

/** `npm run deploy` on a machine that knows no AWS account. */
async function deploy(...args: string[]): Promise<{ code: number; stdout: string }> {
  const inherited = Object.entries(process.env).filter(([name]) => !/^(AWS|DATABASE|GITHUB)_/.test(name))
  const env = {
    ...Object.fromEntries(inherited),
    HOME: home,
    LOOPLESS_HOME: home,
    AWS_EC2_METADATA_DISABLED: 'true',
  }
  try {
    const run = promisify(execFile)(process.execPath, ['infra/deploy/main.ts', ...args], { cwd: root, env })
    return { code: 0, stdout: (await run).stdout }
  } catch (error) {
    const { code, stdout } = error as { code: number; stdout: string }
    return { code, stdout }
  }
}

describe('npm run deploy', { timeout: 300_000 }, () => {
  it('tells with --dry-run what a deployment would make', async () => {
    const params = ['--param', 'database=new', '--param', 'githubWebhookSecret=a secret of this webhook']
    const ofDeploy = ['--force', '--conceal', '--aws-s3-accelerate'] // which `serverless package` does not know
    const { code, stdout } = await packaging(() =>
      deploy('--dry-run', '--stage', 'production', ...params, ...ofDeploy),
    )
    expect(stdout).toContain('The stack loopless-production in eu-central-1 would have:')
    expect(stdout).toMatch(/5 AWS::Lambda::Function\n\s+loopless-production-poll, loopless-production-wake,/)
    expect(stdout).toMatch(/1 AWS::RDS::DBCluster\n\s+DatabaseCluster/)
    expect(stdout).toMatch(/No AWS account to look into[\s\S]*only the parameters were checked/)
    expect(code).toBe(0)
  })

  it('says what is wrong with the parameters, and how to mend it', async () => {
    const { code, stdout } = await deploy(
      '--dry-run',
      '--stage',
      'production',
      '--param',
      'database=existing',
    )
    expect(stdout).toContain('Expected the parameter `databaseHost`')
    expect(stdout).toMatch(/openssl\s+rand\s+-hex\s+32/)
    expect(code).toBe(1)
  })

  it.each([[], ['--stage', 'local']])('asks for a stage that is not this machine: %s %s', async (...args) => {
    const { code, stdout } = await deploy('--dry-run', ...args)
    expect(stdout).toContain('Expected --stage and a name')
    expect(code).toBe(1)
  })
})
