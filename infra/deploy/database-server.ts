import { DescribeSecurityGroupsCommand, type EC2Client, type IpPermission } from '@aws-sdk/client-ec2'
import { DescribeDBClustersCommand, DescribeDBInstancesCommand, type RDSClient } from '@aws-sdk/client-rds'
import { error, type Finding, note } from './finding.ts'
import { lets } from './network.ts'

/** What a deployment needs of an existing database. */
export interface ServerNeeds {
  readonly host: string
  readonly port: number
  /** `cluster-…`, `db-…` or `prx-…`. */
  readonly resourceId: string
  readonly usesTokens: boolean
  readonly securityGroupIds: ReadonlyArray<string>
}

/** What RDS says of it, the same of a cluster and of an instance. */
export interface Server {
  readonly kind: 'cluster' | 'instance'
  readonly id: string
  readonly version: string
  readonly host: string
  readonly readerHost?: string
  readonly takesTokens: boolean
  /** The features for which roles are attached: `Lambda`. */
  readonly features: ReadonlyArray<string>
  readonly securityGroupIds: ReadonlyArray<string>
  /** What its security groups let in. */
  readonly ingress: ReadonlyArray<IpPermission>
}

/** Asks RDS for the database of a resource id. @returns undefined when there is none, or it is a proxy */
export async function readServer(
  { rds, ec2 }: { rds: RDSClient; ec2: EC2Client },
  resourceId: string,
): Promise<Server | undefined> {
  const server = resourceId.startsWith('cluster-')
    ? await readCluster(rds, resourceId)
    : await readInstance(rds, resourceId)
  if (server === undefined || server.securityGroupIds.length === 0) return server
  const { SecurityGroups = [] } = await ec2.send(
    new DescribeSecurityGroupsCommand({
      Filters: [{ Name: 'group-id', Values: [...server.securityGroupIds] }],
    }),
  )
  return { ...server, ingress: SecurityGroups.flatMap(({ IpPermissions = [] }) => IpPermissions) }
}

async function readCluster(rds: RDSClient, resourceId: string): Promise<Server | undefined> {
  const Filters = [{ Name: 'db-cluster-resource-id', Values: [resourceId] }]
  const { DBClusters: [found] = [] } = await rds.send(new DescribeDBClustersCommand({ Filters }))
  if (found === undefined) return undefined
  return {
    kind: 'cluster',
    id: found.DBClusterIdentifier ?? '',
    version: found.EngineVersion ?? '',
    host: found.Endpoint ?? '',
    ...(found.ReaderEndpoint && { readerHost: found.ReaderEndpoint }),
    takesTokens: found.IAMDatabaseAuthenticationEnabled === true,
    features: (found.AssociatedRoles ?? []).flatMap(({ FeatureName }) => FeatureName ?? []),
    securityGroupIds: (found.VpcSecurityGroups ?? []).flatMap((one) => one.VpcSecurityGroupId ?? []),
    ingress: [],
  }
}

async function readInstance(rds: RDSClient, resourceId: string): Promise<Server | undefined> {
  const Filters = [{ Name: 'dbi-resource-id', Values: [resourceId] }]
  const { DBInstances: [found] = [] } = await rds.send(new DescribeDBInstancesCommand({ Filters }))
  if (found === undefined) return undefined
  return {
    kind: 'instance',
    id: found.DBInstanceIdentifier ?? '',
    version: found.EngineVersion ?? '',
    host: found.Endpoint?.Address ?? '',
    takesTokens: found.IAMDatabaseAuthenticationEnabled === true,
    features: (found.AssociatedRoles ?? []).flatMap(({ FeatureName }) => FeatureName ?? []),
    securityGroupIds: (found.VpcSecurityGroups ?? []).flatMap((one) => one.VpcSecurityGroupId ?? []),
    ingress: [],
  }
}

/** What is wrong with a database for the functions. */
export function judgeServer(needs: ServerNeeds, server: Server | undefined): Finding[] {
  if (needs.resourceId.startsWith('prx-')) {
    return [note('The database is behind RDS Proxy: whether the proxy takes IAM tokens is not checked.')]
  }
  if (server === undefined) {
    return [
      error(`RDS knows no database with the resource id ${needs.resourceId} here. Check it, and --region.`),
    ]
  }
  return [
    ...judgeHost(needs, server),
    ...judgeVersion(server),
    ...judgeTokens(needs, server),
    ...judgeIngress(needs, server),
    ...judgeWaking(server),
  ]
}

function judgeHost({ host }: ServerNeeds, server: Server): Finding[] {
  if (host === server.readerHost) {
    return [error(`${host} is the reader of ${server.id}, and events are written. Give ${server.host}.`)]
  }
  if (host === server.host) return []
  return [note(`${server.id} is at ${server.host}, and databaseHost is ${host}: is that the same database?`)]
}

function judgeVersion({ id, version }: Server): Finding[] {
  if (Number.parseInt(version, 10) >= 14) return []
  return [error(`${id} is PostgreSQL ${version}; 14 is the oldest that will do. Upgrade it first.`)]
}

function judgeTokens({ usesTokens }: ServerNeeds, { takesTokens, ...server }: Server): Finding[] {
  if (!usesTokens || takesTokens) return []
  return [
    error(
      `${server.id} takes no IAM tokens, with which the functions would sign in. Switch them on, or deploy with databaseAuth=secret:\n` +
        `  ${modify(server)} --enable-iam-database-authentication --apply-immediately`,
    ),
  ]
}

function modify({ kind, id }: Pick<Server, 'kind' | 'id'>): string {
  return `aws rds modify-db-${kind} --db-${kind}-identifier ${id}`
}

function judgeIngress({ port, securityGroupIds }: ServerNeeds, server: Server): Finding[] {
  const isForThem = ({
    UserIdGroupPairs = [],
    IpRanges = [],
    Ipv6Ranges = [],
    PrefixListIds = [],
  }: IpPermission): boolean =>
    UserIdGroupPairs.some(({ GroupId }) => securityGroupIds.includes(GroupId ?? '')) ||
    // addresses may be those of the functions' subnets
    IpRanges.length + Ipv6Ranges.length + PrefixListIds.length > 0
  if (lets(server.ingress.filter(isForThem), port)) return []
  return [
    error(
      `No security group of ${server.id} lets the functions in. Let them:\n` +
        `  aws ec2 authorize-security-group-ingress --group-id ${server.securityGroupIds[0]} --protocol tcp --port ${port} --source-group ${securityGroupIds[0]}`,
    ),
  ]
}

function judgeWaking({ features, kind, id }: Server): Finding[] {
  if (features.includes('Lambda')) return []
  return [
    note(
      `${id} has no role to invoke Lambda: until it has, events wait for the schedule. After the deployment attach the role that it made, its output DatabaseRoleArn:\n` +
        `  aws rds add-role-to-db-${kind} --db-${kind}-identifier ${id} --feature-name Lambda --role-arn …`,
    ),
  ]
}
