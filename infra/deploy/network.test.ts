import type { IpPermission } from '@aws-sdk/client-ec2'
import { describe, expect, it } from 'vitest'
import { judgeNetwork, type Network, type NetworkNeeds } from './network.ts'

const needs: NetworkNeeds = {
  region: 'eu-central-1',
  subnetIds: ['subnet-a', 'subnet-b'],
  securityGroupIds: ['sg-f'],
  databasePort: 5432,
  services: ['lambda', 's3'],
}

/** Two private subnets with the main route table and an endpoint for each service. */
const sound: Network = {
  subnets: [
    { SubnetId: 'subnet-a', VpcId: 'vpc-1', AvailabilityZone: 'eu-central-1a', CidrBlock: '10.0.0.0/24' },
    { SubnetId: 'subnet-b', VpcId: 'vpc-1', AvailabilityZone: 'eu-central-1b', CidrBlock: '10.0.1.0/24' },
  ],
  groups: [{ GroupId: 'sg-f', VpcId: 'vpc-1', IpPermissionsEgress: [{ IpProtocol: '-1' }] }],
  routeTables: [
    {
      RouteTableId: 'rtb-1',
      VpcId: 'vpc-1',
      Associations: [{ Main: true }],
      Routes: [{ DestinationCidrBlock: '10.0.0.0/16', GatewayId: 'local' }],
    },
  ],
  endpoints: [
    {
      VpcId: 'vpc-1',
      VpcEndpointType: 'Interface',
      ServiceName: 'com.amazonaws.eu-central-1.lambda',
      VpcEndpointId: 'vpce-1',
      PrivateDnsEnabled: true,
      State: 'Available',
      Groups: [{ GroupId: 'sg-e' }],
    },
    {
      VpcId: 'vpc-1',
      VpcEndpointType: 'Gateway',
      ServiceName: 'com.amazonaws.eu-central-1.s3',
      RouteTableIds: ['rtb-1'],
      State: 'Available',
    },
  ],
  endpointGroups: [{ GroupId: 'sg-e', IpPermissions: [https({ UserIdGroupPairs: [{ GroupId: 'sg-f' }] })] }],
}

/** A rule for port 443. */
function https(from: IpPermission): IpPermission {
  return { IpProtocol: 'tcp', FromPort: 443, ToPort: 443, ...from }
}

/** The network with other rules of its interface endpoint. */
function letting(...IpPermissions: IpPermission[]): Network {
  return { ...sound, endpointGroups: [{ GroupId: 'sg-e', IpPermissions }] }
}

/** The network with other routes to the internet, and no endpoints. */
function routed(GatewayOrNat: {
  GatewayId?: string
  NatGatewayId?: string
  TransitGatewayId?: string
}): Network {
  const [table] = sound.routeTables
  const Routes = [{ DestinationCidrBlock: '0.0.0.0/0', State: 'active' as const, ...GatewayOrNat }]
  return { ...sound, routeTables: [{ ...table, Routes }], endpoints: [] }
}

function judge(network: Network, more: Partial<NetworkNeeds> = {}): string[] {
  return judgeNetwork({ ...needs, ...more }, network).map(({ level, text }) => `${level}: ${text}`)
}

describe('judgeNetwork', () => {
  it('finds nothing wrong with endpoints for what is called', () => {
    expect(judge(sound)).toEqual([])
  })

  it('finds nothing wrong with a NAT or transit gateway', () => {
    expect(judge(routed({ NatGatewayId: 'nat-1' }))).toEqual([])
    expect(judge(routed({ TransitGatewayId: 'tgw-1' }))).toEqual([])
  })

  it('names what is not there', () => {
    expect(judge({ ...sound, subnets: sound.subnets.slice(1), groups: [] })).toEqual([
      'error: There is no subnet-a in eu-central-1, or you may not see it. Check the id, and --region.',
      'error: There is no sg-f in eu-central-1, or you may not see it. Check the id, and --region.',
    ])
  })

  it('refuses subnets and groups of several VPCs', () => {
    const [group] = sound.groups
    expect(judge({ ...sound, groups: [{ ...group, VpcId: 'vpc-2' }] })).toContainEqual(
      expect.stringMatching(/^error: .* several VPCs: vpc-1, vpc-2/),
    )
  })

  it('notes that one zone is a risk', () => {
    const found = judge({ ...sound, subnets: sound.subnets.slice(0, 1) }, { subnetIds: ['subnet-a'] })
    expect(found).toEqual([expect.stringMatching(/^note: All subnets are in eu-central-1a/)])
  })

  it('gives the command for each service that there is no way to', () => {
    const found = judge({ ...sound, endpoints: [] })
    expect(found).toHaveLength(2)
    expect(found[0]).toContain('There is no way to lambda from subnet-a and subnet-b')
    expect(found[0]).toContain(
      'aws ec2 create-vpc-endpoint --vpc-id vpc-1 --service-name com.amazonaws.eu-central-1.lambda ' +
        '--vpc-endpoint-type Interface --subnet-ids subnet-a --security-group-ids sg-f\n' +
        '  aws ec2 authorize-security-group-ingress --group-id sg-f --protocol tcp --port 443 --source-group sg-f',
    )
    expect(found[1]).toContain('--vpc-endpoint-type Gateway --route-table-ids rtb-1')
  })

  it('takes an endpoint that lets the addresses of the subnets in', () => {
    for (const CidrIp of ['10.0.0.0/16', '0.0.0.0/0', '10.0.0.0/23'])
      expect(judge(letting(https({ IpRanges: [{ CidrIp }] })))).toEqual([])
  })

  it.each([
    ['nobody', []],
    ['others', [https({ UserIdGroupPairs: [{ GroupId: 'sg-other' }] })]],
    ['other addresses', [https({ IpRanges: [{ CidrIp: '10.1.0.0/16' }, { CidrIp: '10.0.0.0/25' }] })]],
    ['them to another port', [https({ FromPort: 80, ToPort: 80, UserIdGroupPairs: [{ GroupId: 'sg-f' }] })]],
  ])('gives the command for an endpoint that lets in %s', (_, rules) => {
    expect(judge(letting(...rules))).toEqual([
      expect.stringContaining(
        'Have vpce-1 let them in:\n' +
          '  aws ec2 authorize-security-group-ingress --group-id sg-e --protocol tcp --port 443 --source-group sg-f',
      ),
    ])
  })

  it('does not take an endpoint that failed or is deleted for a way', () => {
    for (const State of ['Failed', 'Deleting'] as const) {
      const endpoints = sound.endpoints.map((one) => ({ ...one, State }))
      expect(judge({ ...sound, endpoints })).toEqual([
        expect.stringContaining('create-vpc-endpoint'),
        expect.stringContaining('create-vpc-endpoint'),
      ])
    }
  })

  it('does not take an internet gateway for a way out of a function', () => {
    const found = judge(routed({ GatewayId: 'igw-1' }))
    expect(found).toHaveLength(2)
    expect(found[0]).toContain('an internet gateway is none for functions')
  })

  it('does not take a gateway endpoint of another route table for a way', () => {
    const [, other] = sound.routeTables
    const own = { RouteTableId: 'rtb-2', VpcId: 'vpc-1', Associations: [{ SubnetId: 'subnet-b' }], ...other }
    expect(judge({ ...sound, routeTables: [...sound.routeTables, own] })).toEqual([
      expect.stringContaining('There is no way to s3 from subnet-b:'),
    ])
  })

  it('asks for a way to Secrets Manager when secrets are used', () => {
    const found = judge(sound, { services: ['lambda', 's3', 'secretsmanager'] })
    expect(found).toEqual([expect.stringContaining('com.amazonaws.eu-central-1.secretsmanager')])
  })

  it('asks for groups that let the functions out to the database and to AWS', () => {
    const onlyDns = {
      GroupId: 'sg-f',
      VpcId: 'vpc-1',
      IpPermissionsEgress: [{ IpProtocol: 'udp', FromPort: 53, ToPort: 53 }],
    }
    const found = judge({ ...sound, groups: [onlyDns] })
    expect(found.map((text) => /--port (\d+)/.exec(text)?.[1])).toEqual(['5432', '443'])
  })
})
