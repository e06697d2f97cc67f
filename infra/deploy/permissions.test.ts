import { GetRoleCommand, type IAMClient } from '@aws-sdk/client-iam'
import { describe, expect, it } from 'vitest'
import { checkPermissions, needsOf } from './permissions.ts'

const place = {
  partition: 'aws',
  region: 'eu-central-1',
  account: '123456789012',
  stack: 'loopless-production',
}

describe('needsOf', () => {
  it('asks for what CloudFormation and each type of resource take, once', () => {
    const Type = 'AWS::SQS::Queue'
    expect(needsOf({ Resources: { One: { Type }, Other: { Type } } }, place)).toEqual([
      {
        resource: 'arn:aws:cloudformation:eu-central-1:123456789012:stack/loopless-production/x',
        actions: expect.arrayContaining(['cloudformation:CreateStack', 'cloudformation:ExecuteChangeSet']),
      },
      { resource: '*', actions: ['cloudformation:ValidateTemplate'] },
      {
        resource: 'arn:aws:sqs:eu-central-1:123456789012:loopless-production-x',
        actions: ['sqs:CreateQueue', 'sqs:GetQueueAttributes'],
      },
    ])
  })

  it('asks for the role that RDS makes in an account without a database', () => {
    const template = { Resources: { Database: { Type: 'AWS::RDS::DBCluster' } } }
    expect(needsOf(template, place)).toContainEqual({
      resource: 'arn:aws:iam::123456789012:role/aws-service-role/rds.amazonaws.com/AWSServiceRoleForRDS',
      actions: ['iam:CreateServiceLinkedRole'],
    })
  })

  it('does not pass over a type that it does not know', () => {
    expect(() => needsOf({ Resources: { Bus: { Type: 'AWS::Kafka::Cluster' } } }, place)).toThrow(
      /a rule in .*permissions\.ts for AWS::Kafka::Cluster/,
    )
  })
})

describe('checkPermissions', () => {
  const user = 'arn:aws:iam::123456789012:user/you'
  const needs = [
    { resource: 'arn:aws:iam::123456789012:role/x/ForRDS', actions: ['iam:CreateServiceLinkedRole'] },
  ]

  /** IAM that lets nobody do anything, in an account that has a service's role or not. */
  function iam(hasRole: boolean): IAMClient {
    const EvaluationResults = [
      { EvalActionName: 'iam:CreateServiceLinkedRole', EvalDecision: 'implicitDeny' },
    ]
    const send = async (command: unknown): Promise<unknown> => {
      if (!(command instanceof GetRoleCommand)) return { EvaluationResults }
      if (hasRole) return { Role: {} }
      throw new Error('NoSuchEntity')
    }
    return { send } as unknown as IAMClient
  }

  it('asks for the right to make the role of a service where there is none yet', async () => {
    expect(await checkPermissions(iam(true), user, needs)).toEqual([])
    expect(await checkPermissions(iam(false), user, needs)).toEqual([
      { level: 'error', text: expect.stringContaining('iam:CreateServiceLinkedRole') },
    ])
  })
})
