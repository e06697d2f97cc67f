import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import type { Resource } from '../infra/deploy/template.ts'
import { variants } from '../infra/lint/variants.ts'
import { exampleDatabase } from './support/examples.ts'
import { packaging } from './support/packaging.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const { url, publish } = await exampleDatabase()
const target = `.esbuild/package-${randomUUID()}`
afterAll(() => rm(join(root, target), { recursive: true, force: true }))

function serverless(args: string[], env: NodeJS.ProcessEnv): Promise<{ stdout: string; stderr: string }> {
  const program = join(root, 'node_modules/serverless/bin/serverless.js')
  const run = promisify(execFile)(process.execPath, [program, ...args], {
    cwd: root,
    env: { ...process.env, ...env },
  })
  run.child.stdin?.end() // invoke local reads the event from there
  return run
}

/** Packages a deployment of the stage `production`: the folder of what would be uploaded, and its template. */
async function packaged(env: NodeJS.ProcessEnv, parameters: string[] = []) {
  const folder = `${target}/${randomUUID()}`
  await packaging(() =>
    serverless(['package', '--stage', 'production', '--package', folder, ...parameters], env),
  ).catch(({ code, signal, stdout, stderr }) => {
    throw new Error(`serverless package ended with ${signal ?? code}:\n${stdout}\n${stderr}`)
  })
  const path = join(root, folder, 'cloudformation-template-update-stack.json')
  return { folder, template: JSON.parse(await readFile(path, 'utf8')) }
}

/** The names of a zip file, from its central directory. */
function namesIn(zip: Buffer): string[] {
  const names: string[] = []
  for (let at = zip.indexOf('PK\x01\x02'); at >= 0; at = zip.indexOf('PK\x01\x02', at + 46)) {
    names.push(zip.toString('utf8', at + 46, at + 46 + zip.readUInt16LE(at + 28)))
  }
  return names
}

describe('serverless package', { timeout: 300_000 }, () => {
  const production = {
    DATABASE_URL: 'postgres://production.example/bus',
    GITHUB_WEBHOOK_SECRET: 'the secret of the webhook',
  }

  it('packs each function alone, and its settings', async () => {
    const { folder, template } = await packaged(production)
    for (const name of ['poll', 'wake', 'maintain', 'migrate', 'github-webhook']) {
      const zip = await readFile(join(root, folder, `${name}.zip`))
      expect(namesIn(zip)).toEqual([`dist/functions/${name}.cjs`, `dist/functions/${name}.cjs.map`])
    }
    expect(template.Resources.PollLambdaFunction.Properties).toMatchObject({
      Runtime: 'nodejs24.x',
      Architectures: ['arm64'],
      Handler: 'dist/functions/poll.handler',
      Environment: { Variables: { DATABASE_URL: production.DATABASE_URL } },
    })
    expect(template.Resources.PollEventsRuleSchedule1.Properties.ScheduleExpression).toBe('rate(1 minute)')
    expect(template.Resources.PollLambdaEvConf.Properties).toMatchObject({ MaximumRetryAttempts: 0 })
    expect(template.Resources.WakeLambdaFunction.Properties).toMatchObject({
      ReservedConcurrentExecutions: 4,
      RecursiveLoop: 'Allow',
    })
    expect(template.Resources.WakeBusy.Properties).toMatchObject({
      MetricName: 'ConcurrentExecutions',
      Threshold: 4,
    })
    expect(template.Resources.WakeLambdaEvConf.Properties).toMatchObject({
      MaximumRetryAttempts: 0,
      MaximumEventAgeInSeconds: 60,
    })
  })

  it('leaves each function the time to say that its database does not answer', async () => {
    const { Resources } = (await packaged(production)).template
    for (const name of ['Poll', 'Wake', 'Maintain', 'GithubDashwebhook']) {
      const { Timeout, Environment } = Resources[`${name}LambdaFunction`].Properties
      const seconds = Number(Environment.Variables.DATABASE_CONNECT_TIMEOUT_SECONDS)
      // the network, then the server; and of a kept session before it, which is asked first
      expect(2 * seconds + 1).toBeLessThan(Timeout)
    }
  })

  it('has no alarm on all pollers being busy when there is one', async () => {
    const { Resources } = (await packaged(production, ['--param', 'maxPollers=1'])).template
    expect(Resources.WakeLambdaFunction.Properties).toMatchObject({ ReservedConcurrentExecutions: 1 })
    expect(Resources).not.toHaveProperty('WakeBusy')
  })

  it('packs the authorities of the database that it is given', async () => {
    const file = `${target}/authorities.pem`
    await mkdir(join(root, target), { recursive: true })
    await writeFile(join(root, file), '-----BEGIN CERTIFICATE-----\n')
    const { folder, template } = await packaged(production, ['--param', `databaseCaFile=${file}`])
    expect(namesIn(await readFile(join(root, folder, 'poll.zip')))).toContain(file)
    const { Variables } = template.Resources.PollLambdaFunction.Properties.Environment
    expect(Variables.DATABASE_CA_FILE).toBe(file)
  })

  it('refuses a stage that is not given its database and its secret', async () => {
    const run = serverless(['package', '--stage', 'production', '--package', target], {
      DATABASE_URL: undefined,
      GITHUB_WEBHOOK_SECRET: undefined,
    })
    await expect(run).rejects.toMatchObject({
      stdout: expect.stringMatching(
        /Expected the parameter `databaseUrl` [\s\S]*Expected the parameter `githubWebhookSecret` /,
      ),
    })
  })

  it('runs the migration before any other function is updated, and again when it would do something else', async () => {
    const { Resources } = (await packaged(production)).template
    const functions = Object.entries<Resource>(Resources).filter(
      ([, { Type }]) => Type === 'AWS::Lambda::Function',
    )
    const waiting = functions.filter(([, { DependsOn }]) => DependsOn?.includes('Migration'))
    expect(waiting).toHaveLength(functions.length - 1)
    const { ServiceToken, Fingerprint } = Resources.Migration.Properties
    expect(ServiceToken).toEqual({ 'Fn::GetAtt': ['MigrateLambdaFunction', 'Arn'] })

    const again = await packaged(production)
    expect(again.template.Resources.Migration.Properties.Fingerprint).toBe(Fingerprint)
    const elsewhere = await packaged({ ...production, DATABASE_URL: 'postgres://elsewhere.example/bus' })
    expect(elsewhere.template.Resources.Migration.Properties.Fingerprint).not.toBe(Fingerprint)
  })

  it('runs the migration again for another database behind the same host', async () => {
    const migrationOf = async (resourceId: string): Promise<unknown> => {
      const params = { ...variants.existing, databaseResourceId: resourceId }
      const given = Object.entries(params).flatMap(([name, value]) => ['--param', `${name}=${value}`])
      return (await packaged(production, given)).template.Resources.Migration.Properties
    }
    const [blue, green] = [await migrationOf('cluster-BLUE'), await migrationOf('cluster-GREEN')]
    expect(blue).toMatchObject({ DatabaseResourceId: 'cluster-BLUE' })
    expect(green).toEqual({ ...(blue as object), DatabaseResourceId: 'cluster-GREEN' })
  })
})

describe('serverless invoke local', () => {
  it('handles what was published and ends', async () => {
    await publish('github.ping', {})
    const { stdout } = await serverless(['invoke', 'local', '-f', 'poll'], { DATABASE_URL: url })
    const answer = stdout.slice(stdout.indexOf('\n{\n'))
    expect(JSON.parse(answer)).toMatchObject({ claimed: 1, succeeded: 2, drained: true })
  })

  it('fails with what the function threw', async () => {
    const run = serverless(['invoke', 'local', '-f', 'poll'], {
      DATABASE_URL: 'postgres://nobody@127.0.0.1:1/x',
    })
    await expect(run).rejects.toMatchObject({ code: 1, stdout: expect.stringContaining('ECONNREFUSED') })
  })
})
