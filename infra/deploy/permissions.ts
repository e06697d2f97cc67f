import {
  type ContextEntry,
  GetRoleCommand,
  type IAMClient,
  SimulatePrincipalPolicyCommand,
} from '@aws-sdk/client-iam'
import { error, type Finding, note } from './finding.ts'
import type { Template } from './template.ts'

/** Where something is deployed, for the ARNs. */
export interface Place {
  readonly partition: string
  readonly region: string
  readonly account: string
  readonly stack: string
}

/** Actions that who deploys needs, on one resource. */
export interface Need {
  readonly resource: string
  readonly actions: ReadonlyArray<string>
}

type Rule = readonly [type: RegExp, resource: (place: Place) => string, actions: string]

const anything = (): string => '*'
const arn =
  (service: string, path: string) =>
  ({ partition, region, account, stack }: Place): string =>
    `arn:${partition}:${service}:${region}:${account}:${path.replace('STACK', stack)}`
const iam =
  (path: string) =>
  ({ partition, account, stack }: Place): string =>
    `arn:${partition}:iam::${account}:${path.replace('STACK', stack)}`
const bucket = ({ partition, stack }: Place): string => `arn:${partition}:s3:::${stack}-x`

const makeServiceRole = 'iam:CreateServiceLinkedRole'

/** What CloudFormation does, as who deploys, to make a resource of a type: those actions that a missing right shows at. */
const rules: ReadonlyArray<Rule> = [
  [
    /^AWS::S3::/,
    bucket,
    's3:CreateBucket s3:PutBucketPolicy s3:PutEncryptionConfiguration s3:PutBucketPublicAccessBlock',
  ],
  [/^AWS::S3::/, (place) => `${bucket(place)}/serverless/x`, 's3:PutObject s3:GetObject'],
  [
    /^AWS::Logs::LogGroup$/,
    arn('logs', 'log-group:/aws/lambda/STACK-x'),
    'logs:CreateLogGroup logs:PutRetentionPolicy',
  ],
  [
    /^AWS::Lambda::/,
    arn('lambda', 'function:STACK-x'),
    'lambda:CreateFunction lambda:GetFunction lambda:UpdateFunctionCode lambda:UpdateFunctionConfiguration ' +
      'lambda:PutFunctionConcurrency lambda:PutFunctionEventInvokeConfig lambda:PutFunctionRecursionConfig ' +
      'lambda:CreateFunctionUrlConfig lambda:AddPermission',
  ],
  [/^Custom::/, arn('lambda', 'function:STACK-x'), 'lambda:InvokeFunction'],
  [/^AWS::IAM::Role$/, iam('role/STACK-x'), 'iam:CreateRole iam:GetRole iam:PutRolePolicy iam:PassRole'],
  [/^AWS::IAM::ManagedPolicy$/, iam('policy/STACK-x'), 'iam:CreatePolicy'],
  [/^AWS::IAM::ManagedPolicy$/, iam('role/STACK-x'), 'iam:AttachRolePolicy'],
  [/^AWS::Events::Rule$/, arn('events', 'rule/STACK-x'), 'events:PutRule events:PutTargets'],
  [/^AWS::SQS::Queue$/, arn('sqs', 'STACK-x'), 'sqs:CreateQueue sqs:GetQueueAttributes'],
  [/^AWS::SNS::Topic$/, arn('sns', 'STACK-x'), 'sns:CreateTopic'],
  [/^AWS::CloudWatch::Alarm$/, arn('cloudwatch', 'alarm:STACK-x'), 'cloudwatch:PutMetricAlarm'],
  [
    /^AWS::CloudWatch::Dashboard$/,
    ({ partition, account, stack }) => `arn:${partition}:cloudwatch::${account}:dashboard/${stack}`,
    'cloudwatch:PutDashboard',
  ],
  [
    /^AWS::EC2::/,
    anything,
    'ec2:CreateVpc ec2:CreateSubnet ec2:CreateRouteTable ec2:AssociateRouteTable ec2:CreateSecurityGroup ' +
      'ec2:AuthorizeSecurityGroupIngress ec2:AuthorizeSecurityGroupEgress ec2:CreateVpcEndpoint ec2:CreateTags',
  ],
  [/^AWS::RDS::DBCluster$/, arn('rds', 'cluster:STACK-x'), 'rds:CreateDBCluster rds:AddRoleToDBCluster'],
  [/^AWS::RDS::DBInstance$/, arn('rds', 'db:STACK-x'), 'rds:CreateDBInstance'],
  [/^AWS::RDS::DBSubnetGroup$/, arn('rds', 'subgrp:STACK-x'), 'rds:CreateDBSubnetGroup'],
  [
    /^AWS::RDS::DBClusterParameterGroup$/,
    arn('rds', 'cluster-pg:STACK-x'),
    'rds:CreateDBClusterParameterGroup',
  ],
  // RDS makes its own role in an account that has had no database.
  [
    /^AWS::RDS::DBCluster$/,
    ({ partition, account }) =>
      `arn:${partition}:iam::${account}:role/aws-service-role/rds.amazonaws.com/AWSServiceRoleForRDS`,
    makeServiceRole,
  ],
  // RDS makes the secret of the first user as who deploys.
  [
    /^AWS::RDS::DBCluster$/,
    anything,
    'secretsmanager:CreateSecret secretsmanager:TagResource kms:DescribeKey',
  ],
]

const stackActions =
  'CreateStack CreateChangeSet ExecuteChangeSet DescribeChangeSet DescribeStacks DescribeStackEvents DescribeStackResource ListStackResources'

/**
 * What who deploys a template needs to be allowed.
 * @throws for a type of resource that no rule is for
 */
export function needsOf({ Resources }: Template, place: Place): Need[] {
  const types = new Set(Object.values(Resources).map(({ Type }) => Type))
  const unknown = [...types].filter((type) => !rules.some(([pattern]) => pattern.test(type)))
  if (unknown.length > 0)
    throw new Error(`Expected a rule in ${import.meta.filename} for ${unknown.join(', ')}.`)
  const stack: Need = {
    resource: arn('cloudformation', 'stack/STACK/x')(place),
    actions: stackActions.split(' ').map((name) => `cloudformation:${name}`),
  }
  const needed = rules
    .filter(([pattern]) => [...types].some((type) => pattern.test(type)))
    .map(([, resource, actions]) => ({ resource: resource(place), actions: actions.split(' ') }))
  const validation: Need = { resource: '*', actions: ['cloudformation:ValidateTemplate'] } // it has no stack yet
  return [stack, validation, ...needed]
}

/**
 * Has IAM say which of the needs are not met. It knows the policies of the user or role and of its boundary, and
 * conditions only in part.
 * @param callerArn as STS has it
 */
export async function checkPermissions(
  client: IAMClient,
  callerArn: string,
  needs: ReadonlyArray<Need>,
): Promise<Finding[]> {
  if (callerArn.endsWith(':root'))
    return [note('You deploy as the root user of the account. A role that may do less is safer.')]
  try {
    const principal = await principalOf(client, callerArn)
    const all = await withoutMade(client, needs)
    const denied = await Promise.all(all.map((need) => deniedOf(client, principal, need)))
    return denied.flat().length === 0 ? [] : [sayDenied(principal, denied)]
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    return [note(`Whether you may make all this is not known: IAM does not say (${reason}).`)]
  }
}

/** The role of a service is made once in an account: who finds it there needs no right to make it. */
async function withoutMade(client: IAMClient, needs: ReadonlyArray<Need>): Promise<ReadonlyArray<Need>> {
  const isNeeded = await Promise.all(
    needs.map(async ({ resource, actions }) => {
      if (!actions.includes(makeServiceRole)) return true
      const role = new GetRoleCommand({ RoleName: resource.split('/').at(-1) })
      return client.send(role).then(
        () => false,
        () => true,
      )
    }),
  )
  return needs.filter((_, at) => isNeeded[at])
}

/** The user or role under a session; a session's own ARN does not have the path of its role. */
async function principalOf(client: IAMClient, callerArn: string): Promise<string> {
  const role = /:assumed-role\/([^/]+)\//.exec(callerArn)?.[1]
  if (role === undefined) return callerArn
  const { Role } = await client.send(new GetRoleCommand({ RoleName: role }))
  return Role?.Arn ?? callerArn
}

/** AWS's own policies let RDS's role be made, and not any. */
const forRds: ContextEntry = {
  ContextKeyName: 'iam:AWSServiceName',
  ContextKeyType: 'string',
  ContextKeyValues: ['rds.amazonaws.com'],
}

async function deniedOf(client: IAMClient, principal: string, { resource, actions }: Need): Promise<Need[]> {
  const { EvaluationResults = [] } = await client.send(
    new SimulatePrincipalPolicyCommand({
      PolicySourceArn: principal,
      ActionNames: [...actions],
      ResourceArns: [resource],
      ContextEntries: actions.includes(makeServiceRole) ? [forRds] : [],
      MaxItems: 1_000,
    }),
  )
  const denied = EvaluationResults.filter(({ EvalDecision }) => EvalDecision !== 'allowed')
  if (denied.length === 0) return []
  return [{ resource, actions: denied.flatMap(({ EvalActionName }) => EvalActionName ?? []) }]
}

function sayDenied(principal: string, denied: ReadonlyArray<ReadonlyArray<Need>>): Finding {
  const statements = denied.flat().map(({ resource, actions }) => ({
    Effect: 'Allow',
    Action: actions,
    Resource: resource.replace(/([-/])x(\/x)?$/, '$1*'),
  }))
  const policy = JSON.stringify({ Version: '2012-10-17', Statement: statements }, null, 2)
  return error(
    `${principal} may not do all that the deployment does. Have this allowed:\n${policy.replace(/^/gm, '  ')}`,
  )
}
