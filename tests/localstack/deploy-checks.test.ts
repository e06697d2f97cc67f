import { randomUUID } from 'node:crypto'
import {
  AuthorizeSecurityGroupIngressCommand,
  CreateSecurityGroupCommand,
  CreateSubnetCommand,
  CreateVpcCommand,
  CreateVpcEndpointCommand,
  DescribeRouteTablesCommand,
  EC2Client,
} from '@aws-sdk/client-ec2'
import {
  AttachUserPolicyCommand,
  CreatePolicyCommand,
  CreateUserCommand,
  IAMClient,
} from '@aws-sdk/client-iam'
import { describe, expect, inject, it } from 'vitest'
import { judgeNetwork, type NetworkNeeds, readNetwork } from '../../infra/deploy/network.ts'
import { checkPermissions, type Need } from '../../infra/deploy/permissions.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** Of LocalStack. */
    awsUrl: string
  }
}

const region = 'eu-central-1'
const connection = {
  endpoint: inject('awsUrl'),
  region,
  credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
}
const ec2 = new EC2Client(connection)
const iam = new IAMClient(connection)

/** A VPC with two private subnets and a security group. */
async function makeNetwork(): Promise<NetworkNeeds & { vpcId: string }> {
  const { Vpc } = await ec2.send(new CreateVpcCommand({ CidrBlock: '10.9.0.0/16' }))
  const vpcId = Vpc?.VpcId ?? ''
  const subnetIds = await Promise.all(
    ['a', 'b'].map(async (zone, at) => {
      const place = { CidrBlock: `10.9.${at}.0/24`, AvailabilityZone: `${region}${zone}` }
      const { Subnet } = await ec2.send(new CreateSubnetCommand({ VpcId: vpcId, ...place }))
      return Subnet?.SubnetId ?? ''
    }),
  )
  const { GroupId = '' } = await ec2.send(
    new CreateSecurityGroupCommand({ GroupName: 'functions', Description: 'functions', VpcId: vpcId }),
  )
  return {
    vpcId,
    region,
    subnetIds,
    securityGroupIds: [GroupId],
    databasePort: 5432,
    services: ['lambda', 's3'],
  }
}

describe('the check of the network', () => {
  it('names the services that there is no way to, until there are endpoints', async () => {
    const needs = await makeNetwork()
    const found = judgeNetwork(needs, await readNetwork(ec2, needs))
    expect(found.map(({ text }) => /^There is no way to (\w+)/.exec(text)?.[1])).toEqual(['lambda', 's3'])

    const { vpcId: VpcId, subnetIds, securityGroupIds } = needs
    const ofVpc = new DescribeRouteTablesCommand({ Filters: [{ Name: 'vpc-id', Values: [VpcId] }] })
    const { RouteTables = [] } = await ec2.send(ofVpc)
    const RouteTableIds = RouteTables.flatMap(({ RouteTableId }) => RouteTableId ?? [])
    const gateway = { VpcEndpointType: 'Gateway', RouteTableIds } as const
    await ec2.send(
      new CreateVpcEndpointCommand({ VpcId, ServiceName: `com.amazonaws.${region}.s3`, ...gateway }),
    )
    const networkInterface = {
      VpcEndpointType: 'Interface' as const,
      PrivateDnsEnabled: true,
      SubnetIds: subnetIds.slice(0, 1),
      SecurityGroupIds: [...securityGroupIds],
    }
    const ServiceName = `com.amazonaws.${region}.lambda`
    await ec2.send(new CreateVpcEndpointCommand({ VpcId, ServiceName, ...networkInterface }))
    const [closed, ...others] = judgeNetwork(needs, await readNetwork(ec2, needs))
    expect(closed?.text).toContain(`authorize-security-group-ingress --group-id ${securityGroupIds[0]}`)
    expect(others).toEqual([])

    const IpPermissions = securityGroupIds.map((GroupId) => ({
      IpProtocol: 'tcp',
      FromPort: 443,
      ToPort: 443,
      UserIdGroupPairs: [{ GroupId }],
    }))
    const GroupId = securityGroupIds[0]
    await ec2.send(new AuthorizeSecurityGroupIngressCommand({ GroupId, IpPermissions }))
    expect(judgeNetwork(needs, await readNetwork(ec2, needs))).toEqual([])
  })

  it('names subnets and groups that are not there', async () => {
    const needs = { ...(await makeNetwork()), subnetIds: ['subnet-0a1b2c3d4e5f60001'] }
    expect(judgeNetwork(needs, await readNetwork(ec2, needs))).toEqual([
      { level: 'error', text: expect.stringContaining('There is no subnet-0a1b2c3d4e5f60001') },
    ])
  })
})

describe('the check of the permissions', () => {
  const needs: Need[] = [
    { resource: 'arn:aws:sqs:eu-central-1:000000000000:bus-x', actions: ['sqs:CreateQueue'] },
    { resource: 'arn:aws:sns:eu-central-1:000000000000:bus-x', actions: ['sns:CreateTopic'] },
  ]

  /** A user who may do that; returns the ARN. */
  async function makeUser(allowed: ReadonlyArray<Need>): Promise<string> {
    const name = `deployer-${randomUUID()}`
    const Statement = allowed.map(({ resource, actions }) => ({
      Effect: 'Allow',
      Action: actions,
      Resource: [resource],
    }))
    const PolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement })
    const { Policy } = await iam.send(new CreatePolicyCommand({ PolicyName: name, PolicyDocument }))
    const { User } = await iam.send(new CreateUserCommand({ UserName: name }))
    await iam.send(new AttachUserPolicyCommand({ UserName: name, PolicyArn: Policy?.Arn }))
    return User?.Arn ?? ''
  }

  it('finds nothing wrong with who may do everything', async () => {
    expect(await checkPermissions(iam, await makeUser(needs), needs)).toEqual([])
  })

  it('gives the policy that is missing', async () => {
    const [found, ...others] = await checkPermissions(iam, await makeUser(needs.slice(0, 1)), needs)
    expect(others).toEqual([])
    expect(found).toMatchObject({ level: 'error', text: expect.stringContaining('"sns:CreateTopic"') })
    expect(found?.text).not.toContain('sqs:')
  })
})
