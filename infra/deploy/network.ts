import {
  DescribeRouteTablesCommand,
  DescribeSecurityGroupsCommand,
  DescribeSubnetsCommand,
  DescribeVpcEndpointsCommand,
  type EC2Client,
  type IpPermission,
  type RouteTable,
  type SecurityGroup,
  type Subnet,
  type VpcEndpoint,
} from '@aws-sdk/client-ec2'
import { error, type Finding, note } from './finding.ts'

/** The subnets and groups that a deployment names, and what the network needs to have. */
export interface NetworkNeeds {
  readonly region: string
  readonly subnetIds: ReadonlyArray<string>
  readonly securityGroupIds: ReadonlyArray<string>
  readonly databasePort: number
  readonly services: ReadonlyArray<Service>
}

/** A service of AWS that functions call. */
export type Service = 'lambda' | 's3' | 'secretsmanager'

/** What EC2 says of them. */
export interface Network {
  readonly subnets: ReadonlyArray<Subnet>
  readonly groups: ReadonlyArray<SecurityGroup>
  readonly routeTables: ReadonlyArray<RouteTable>
  readonly endpoints: ReadonlyArray<VpcEndpoint>
  /** The security groups of the endpoints. */
  readonly endpointGroups: ReadonlyArray<SecurityGroup>
}

/** Reads the network that the functions would be in. */
export async function readNetwork(ec2: EC2Client, needs: NetworkNeeds): Promise<Network> {
  // By filters: an id that there is not is then missing from the answer instead of an error.
  const [{ Subnets = [] }, { SecurityGroups = [] }] = await Promise.all([
    ec2.send(new DescribeSubnetsCommand({ Filters: [{ Name: 'subnet-id', Values: [...needs.subnetIds] }] })),
    ec2.send(
      new DescribeSecurityGroupsCommand({
        Filters: [{ Name: 'group-id', Values: [...needs.securityGroupIds] }],
      }),
    ),
  ])
  const vpcs = [...new Set(Subnets.flatMap(({ VpcId }) => VpcId ?? []))]
  if (vpcs.length === 0) {
    return { subnets: [], groups: SecurityGroups, routeTables: [], endpoints: [], endpointGroups: [] }
  }
  const Filters = [{ Name: 'vpc-id', Values: vpcs }]
  const [{ RouteTables = [] }, { VpcEndpoints = [] }] = await Promise.all([
    ec2.send(new DescribeRouteTablesCommand({ Filters })),
    ec2.send(new DescribeVpcEndpointsCommand({ Filters })),
  ])
  return {
    subnets: Subnets,
    groups: SecurityGroups,
    routeTables: RouteTables,
    endpoints: VpcEndpoints,
    endpointGroups: await readGroups(ec2, VpcEndpoints),
  }
}

async function readGroups(ec2: EC2Client, endpoints: ReadonlyArray<VpcEndpoint>): Promise<SecurityGroup[]> {
  const ids = endpoints.flatMap(({ Groups = [] }) => Groups.flatMap(({ GroupId }) => GroupId ?? []))
  if (ids.length === 0) return []
  const Filters = [{ Name: 'group-id', Values: [...new Set(ids)] }]
  const { SecurityGroups = [] } = await ec2.send(new DescribeSecurityGroupsCommand({ Filters }))
  return SecurityGroups
}

/** What is wrong with a network for the functions. */
export function judgeNetwork(needs: NetworkNeeds, network: Network): Finding[] {
  const missing = [
    ...needs.subnetIds.filter((id) => !network.subnets.some(({ SubnetId }) => SubnetId === id)),
    ...needs.securityGroupIds.filter((id) => !network.groups.some(({ GroupId }) => GroupId === id)),
  ]
  if (missing.length > 0) {
    return missing.map((id) =>
      error(`There is no ${id} in ${needs.region}, or you may not see it. Check the id, and --region.`),
    )
  }
  return [...judgePlaces(network), ...judgeGroups(needs, network), ...judgeRoutes(needs, network)]
}

function judgePlaces({ subnets, groups }: Network): Finding[] {
  const vpcs = new Set([...subnets, ...groups].map(({ VpcId }) => VpcId))
  if (vpcs.size > 1) {
    const all = [...vpcs].join(', ')
    return [error(`The subnets and security groups are in several VPCs: ${all}. Give those of one.`)]
  }
  const zones = new Set(subnets.map(({ AvailabilityZone }) => AvailabilityZone))
  if (zones.size > 1) return []
  return [
    note(`All subnets are in ${[...zones][0]}: when that zone fails, nothing is handled until it is back.`),
  ]
}

function judgeGroups({ databasePort }: NetworkNeeds, { groups }: Network): Finding[] {
  const ports = { 'the database': databasePort, AWS: 443 }
  return Object.entries(ports)
    .filter(([, port]) => !groups.some((group) => lets(group.IpPermissionsEgress ?? [], port)))
    .map(([whom, port]) => {
      const id = groups[0]?.GroupId
      return error(
        `No security group of the functions lets them out to port ${port}, to ${whom}. Let them:\n` +
          `  aws ec2 authorize-security-group-egress --group-id ${id} --protocol tcp --port ${port} --cidr 0.0.0.0/0`,
      )
    })
}

/** Whether one of a group's rules is for a TCP port, to or from whomever. */
export function lets(
  rules: ReadonlyArray<{
    IpProtocol?: string | undefined
    FromPort?: number | undefined
    ToPort?: number | undefined
  }>,
  port: number,
): boolean {
  return rules.some(
    ({ IpProtocol, FromPort = port, ToPort = port }) =>
      IpProtocol === '-1' || (IpProtocol === 'tcp' && FromPort <= port && port <= ToPort),
  )
}

/** What fails when the functions have no way to a service. */
const uses: Readonly<Record<Service, string>> = {
  lambda: 'wake could not go on when its time is up, or call helpers',
  s3: 'migrate could not answer CloudFormation, and the deployment would wait in vain and fail',
  secretsmanager: 'the functions could not read how to sign in to the database',
}

function judgeRoutes(needs: NetworkNeeds, network: Network): Finding[] {
  return needs.services.flatMap((service) => {
    const wayless = network.subnets.filter((subnet) => !hasWay(service, subnet, needs, network))
    return wayless.length === 0 ? [] : [error(sayWayless(service, needs, wayless, network))]
  })
}

function hasWay(service: Service, subnet: Subnet, needs: NetworkNeeds, network: Network): boolean {
  const table = routeTableOf(subnet, network)
  if (hasNat(table)) return true
  return endpointsFor(service, subnet, network).some((endpoint) =>
    endpoint.VpcEndpointType === 'Gateway'
      ? endpoint.RouteTableIds?.includes(table?.RouteTableId ?? '') === true
      : endpoint.PrivateDnsEnabled === true && letsIn(endpoint, subnet, needs, network),
  )
}

function routeTableOf({ SubnetId, VpcId }: Subnet, { routeTables }: Network): RouteTable | undefined {
  const own = routeTables.find(({ Associations }) => Associations?.some((one) => one.SubnetId === SubnetId))
  const main = ({ VpcId: vpc, Associations }: RouteTable): boolean =>
    vpc === VpcId && Associations?.some((one) => one.Main) === true
  return own ?? routeTables.find(main)
}

/** A way to the whole internet for machines without a public address: whatever it is, but an internet gateway. */
function hasNat(table: RouteTable | undefined): boolean {
  return defaultRoutes(table).some(({ GatewayId }) => !GatewayId?.startsWith('igw-'))
}

function defaultRoutes(table: RouteTable | undefined) {
  return (table?.Routes ?? []).filter(
    ({ DestinationCidrBlock, State }) => DestinationCidrBlock === '0.0.0.0/0' && State !== 'blackhole',
  )
}

function endpointsFor(service: Service, { VpcId }: Subnet, { endpoints }: Network): VpcEndpoint[] {
  return endpoints.filter(
    (endpoint) =>
      endpoint.VpcId === VpcId &&
      endpoint.ServiceName?.endsWith(`.${service}`) === true &&
      /^(available|pending)$/i.test(endpoint.State ?? ''),
  )
}

/** Whether an endpoint takes connections of the functions in a subnet: by their groups, or by addresses that have the subnet's. */
function letsIn(
  { Groups = [] }: VpcEndpoint,
  { CidrBlock }: Subnet,
  { securityGroupIds }: NetworkNeeds,
  { endpointGroups }: Network,
): boolean {
  const isForThem = ({ UserIdGroupPairs = [], IpRanges = [], PrefixListIds = [] }: IpPermission): boolean =>
    UserIdGroupPairs.some(({ GroupId = '' }) => securityGroupIds.includes(GroupId)) ||
    IpRanges.some(({ CidrIp }) => contains(CidrIp, CidrBlock)) ||
    PrefixListIds.length > 0 // what is in it is not looked at
  const own = endpointGroups.filter(({ GroupId }) => Groups.some((one) => one.GroupId === GroupId))
  return lets(own.flatMap(({ IpPermissions = [] }) => IpPermissions).filter(isForThem), 443)
}

/** Whether all addresses of one range are in another: `10.0.0.0/8` contains `10.9.0.0/24`. */
function contains(range = '', other = ''): boolean {
  const [start, bits] = parseRange(range)
  const [otherStart, otherBits] = parseRange(other)
  const size = 2 ** (32 - bits)
  return bits <= otherBits && Math.floor(start / size) === Math.floor(otherStart / size)
}

function parseRange(range: string): readonly [start: number, bits: number] {
  const [address = '', bits] = range.split('/')
  return [address.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0), Number(bits)]
}

function sayWayless(
  service: Service,
  { region, securityGroupIds }: NetworkNeeds,
  subnets: ReadonlyArray<Subnet>,
  network: Network,
): string {
  const tables = subnets.map((subnet) => routeTableOf(subnet, network))
  const isPublic = tables.some((table) => defaultRoutes(table).length > 0)
  const found = isPublic
    ? 'an internet gateway is none for functions, which have no public address'
    : 'no route leads to a NAT gateway'
  const told =
    `There is no way to ${service} from ${subnets.map(({ SubnetId }) => SubnetId).join(' and ')}: ` +
    `there is no endpoint for it${service === 's3' ? '' : ' that lets the functions in'}, and ${found}. So ${uses[service]}.\n`
  const [subnet] = subnets
  const closed =
    subnet && endpointsFor(service, subnet, network).find(({ PrivateDnsEnabled }) => PrivateDnsEnabled)
  if (closed) {
    return `${told}Have ${closed.VpcEndpointId} let them in:\n${letInto(closed.Groups?.[0]?.GroupId, securityGroupIds)}`
  }
  const made = `aws ec2 create-vpc-endpoint --vpc-id ${subnet?.VpcId} --service-name com.amazonaws.${region}.${service}`
  if (service === 's3') {
    const tableIds = [...new Set(tables.map((table) => table?.RouteTableId))].join(' ')
    return `${told}Make an endpoint (free) or a NAT gateway:\n  ${made} --vpc-endpoint-type Gateway --route-table-ids ${tableIds}`
  }
  const [group] = securityGroupIds
  return (
    `${told}Make an endpoint (about 8 USD a month), with a group that lets the functions in, or a NAT gateway:\n` +
    `  ${made} --vpc-endpoint-type Interface --subnet-ids ${subnet?.SubnetId} --security-group-ids ${group}\n` +
    letInto(group, securityGroupIds)
  )
}

/** The commands after which a group lets the functions in. */
function letInto(groupId: string | undefined, securityGroupIds: ReadonlyArray<string>): string {
  return securityGroupIds
    .map(
      (id) =>
        `  aws ec2 authorize-security-group-ingress --group-id ${groupId} --protocol tcp --port 443 --source-group ${id}`,
    )
    .join('\n')
}
