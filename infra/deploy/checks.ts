import { EC2Client } from '@aws-sdk/client-ec2'
import { IAMClient } from '@aws-sdk/client-iam'
import { LambdaClient } from '@aws-sdk/client-lambda'
import { RDSClient } from '@aws-sdk/client-rds'
import { GetCallerIdentityCommand, STSClient } from '@aws-sdk/client-sts'
import { judgeConcurrency, readConcurrency } from './account.ts'
import { checkConnection } from './database-connection.ts'
import { judgeServer, readServer } from './database-server.ts'
import { type Finding, note } from './finding.ts'
import { judgeNetwork, type NetworkNeeds, readNetwork, type Service } from './network.ts'
import { checkPermissions, needsOf } from './permissions.ts'
import type { DatabasePlan, Plan } from './plan.ts'

/** Checks a plan against the account and the database, as far as they can be seen from here. */
export async function checkPlan(plan: Plan): Promise<Finding[]> {
  const { owner } = plan.database
  const found = await Promise.all([
    checkAccount(plan),
    owner.auth === 'url' && owner.url ? checkConnection(owner.url) : [],
  ])
  return found.flat()
}

async function checkAccount(plan: Plan): Promise<Finding[]> {
  const caller = await findCaller(plan.region)
  if (typeof caller === 'string') {
    return [note(`No AWS account to look into (${caller}): only the parameters were checked.`)]
  }
  const { partition, account, arn } = caller
  const { region, stack, template, database, maxPollers, isReserved } = plan
  const place = { partition, region, account, stack }
  const found = await Promise.all([
    checkPermissions(new IAMClient({ region }), arn, needsOf(template, place)),
    isReserved
      ? unlessUnknown('how many functions may run at once', () => checkConcurrency(region, stack, maxPollers))
      : [],
    unlessUnknown('the network', () => checkNetwork(region, database)),
    unlessUnknown('the database server', () => checkServer(region, database)),
  ])
  return found.flat()
}

/** Who deploys, or why that is not known. */
async function findCaller(
  region: string,
): Promise<{ partition: string; account: string; arn: string } | string> {
  try {
    const { Arn = '', Account = '' } = await new STSClient({ region }).send(new GetCallerIdentityCommand({}))
    return { partition: Arn.split(':')[1] ?? 'aws', account: Account, arn: Arn }
  } catch (cause) {
    return cause instanceof Error ? cause.message : String(cause)
  }
}

/** Somebody may deploy and may not look, and not every emulator has every service. */
async function unlessUnknown(what: string, check: () => Promise<Finding[]>): Promise<Finding[]> {
  try {
    return await check()
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    return [note(`What there is to know of ${what} is not known: ${reason}`)]
  }
}

async function checkConcurrency(region: string, stack: string, maxPollers: number): Promise<Finding[]> {
  const concurrency = await readConcurrency(new LambdaClient({ region }), `${stack}-wake`)
  return judgeConcurrency(maxPollers, concurrency)
}

async function checkNetwork(region: string, database: DatabasePlan): Promise<Finding[]> {
  const { vpc, port, poller, publisher, owner } = database
  const subnetIds = listOf(vpc?.subnetIds)
  if (subnetIds === undefined) return [] // none, or made by the deployment
  const usesSecrets = [poller, publisher, owner].some(({ auth }) => auth === 'secret')
  const services: Service[] = ['lambda', 's3', ...(usesSecrets ? (['secretsmanager'] as const) : [])]
  const needs: NetworkNeeds = {
    region,
    subnetIds,
    securityGroupIds: listOf(vpc?.securityGroupIds) ?? [],
    databasePort: Number(port),
    services,
  }
  return judgeNetwork(needs, await readNetwork(new EC2Client({ region }), needs))
}

async function checkServer(region: string, database: DatabasePlan): Promise<Finding[]> {
  const { host, port, resourceId, vpc, poller, owner } = database
  if (typeof resourceId !== 'string' || resourceId === '') return []
  const needs = {
    host: String(host),
    port: Number(port),
    resourceId,
    usesTokens: poller.auth === 'iam' || owner.auth === 'iam',
    securityGroupIds: listOf(vpc?.securityGroupIds) ?? [],
  }
  const clients = { rds: new RDSClient({ region }), ec2: new EC2Client({ region }) }
  return judgeServer(needs, resourceId.startsWith('prx-') ? undefined : await readServer(clients, resourceId))
}

/** The ids of a parameter, which are joined by commas and split by CloudFormation. */
function listOf(value: unknown): string[] | undefined {
  const split = (value as { 'Fn::Split'?: [string, string] } | undefined)?.['Fn::Split']
  return split?.[1].split(split[0])
}
