import { describe, expect, it } from 'vitest'
import { needsOf } from './permissions.ts'

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
      {
        resource: 'arn:aws:sqs:eu-central-1:123456789012:loopless-production-x',
        actions: ['sqs:CreateQueue', 'sqs:GetQueueAttributes'],
      },
    ])
  })

  it('does not pass over a type that it does not know', () => {
    expect(() => needsOf({ Resources: { Bus: { Type: 'AWS::Kafka::Cluster' } } }, place)).toThrow(
      /a rule in .*permissions\.ts for AWS::Kafka::Cluster/,
    )
  })
})
