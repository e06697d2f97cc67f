import { describe, expect, it } from 'vitest'
import { checkNames, checkParameters } from './parameters.ts'

/** As serverless.yml has them. */
const defaults = {
  database: 'url',
  databaseUrl: '',
  databaseHost: '',
  databasePort: 5432,
  databaseName: 'loopless',
  databasePrepare: 'true',
  databaseCaFile: null,
  databaseAuth: 'iam',
  databaseResourceId: '',
  databaseSecretArn: '',
  databaseOwner: 'loopless_owner',
  subnetIds: '',
  securityGroupIds: '',
  vpcCidr: '10.83.0.0/16',
  databaseVersion: '17.5',
  databaseMinCapacity: 0.5,
  databaseMaxCapacity: 8,
  databaseBackupDays: 7,
  databaseDeletionPolicy: 'Snapshot',
  databaseDeletionProtection: true,
  databaseDataApi: false,
  githubWebhookSecret: 'a secret of 22 letters',
  pollSchedule: 'rate(1 minute)',
  pollAlarmSeconds: 300,
  keepEventDays: 7,
  keepAttemptDays: 30,
  keepDeadLetterDays: 30,
  lingerMs: 200,
  maxPollers: 4,
  reservePollers: 'true',
}

const existing = {
  database: 'existing',
  databaseHost: 'db.example',
  databaseResourceId: 'cluster-ABC123',
  subnetIds: 'subnet-0a1b2c3d4e5f60001,subnet-0a1b2c3d4e5f60002',
  securityGroupIds: 'sg-0a1b2c3d4e5f60001',
}
const secretArn = 'arn:aws:secretsmanager:eu-central-1:123456789012:secret:bus-a1b2c3'
const databaseUrl = 'postgres://bus:password@db.example/loopless'

/** With what serverless.yml takes from another parameter. */
function check(given: Record<string, unknown>): string[] {
  const parameters: Record<string, unknown> = { ...defaults, ...given }
  parameters['databasePublisherUrl'] ??= parameters['databaseUrl']
  parameters['databaseOwnerUrl'] ??= parameters['databaseUrl']
  parameters['databasePublisherSecretArn'] ??= parameters['databaseSecretArn']
  parameters['databaseOwnerSecretArn'] ??= parameters['databaseSecretArn']
  parameters['databaseOwnerAuth'] ??= parameters['databaseAuth']
  return checkParameters(parameters)
}

describe('checkParameters', () => {
  it.each([
    ['a url', { databaseUrl }],
    ['a url for each kind of function', { databaseUrl, databaseOwnerUrl: databaseUrl }],
    ['an existing database by token', existing],
    [
      'an existing database behind a proxy',
      { ...existing, databaseResourceId: 'prx-0abc', databasePrepare: 'false' },
    ],
    [
      'an existing database by secret',
      { ...existing, databaseAuth: 'secret', databaseResourceId: '', databaseSecretArn: secretArn },
    ],
    [
      'an existing database by token, its owner by secret',
      { ...existing, databaseOwnerAuth: 'secret', databaseOwnerSecretArn: secretArn },
    ],
    [
      'an existing database by url',
      { ...existing, databaseAuth: 'url', databaseHost: '', databaseResourceId: '', databaseUrl },
    ],
    ['authorities where the functions run', { ...existing, databaseCaFile: '/var/runtime/ca-cert.pem' }],
    ['a new database', { database: 'new' }],
    [
      'a new database that may pause',
      { database: 'new', databaseMinCapacity: '0', databaseMaxCapacity: '1' },
    ],
  ])('takes %s', (_, given) => {
    expect(check(given)).toEqual([])
  })

  it('says which ways to a database there are', () => {
    expect(check({ database: 'neu' })).toEqual([
      'Expected the parameter `database` to be `url` or `existing` or `new`; got `neu`. Give it with --param database=….',
    ])
  })

  it('asks for the url, once, and tells its form', () => {
    expect(check({})).toEqual([
      'Expected the parameter `databaseUrl` to be a URL of the form `postgres://user:password@host:5432/database`; got nothing. Give it with --param databaseUrl=… or as DATABASE_URL.',
    ])
  })

  it('asks for what an existing database needs', () => {
    const problems = check({ database: 'existing' })
    const names = ['databaseHost', 'databaseResourceId', 'subnetIds', 'securityGroupIds']
    expect(problems.map((problem) => /`(\w+)`/.exec(problem)?.[1])).toEqual(names)
  })

  it.each([
    ['databaseHost', 'db.example:5432'],
    ['databasePort', '0'],
    ['databaseResourceId', 'my-cluster'],
    ['databaseAuth', 'password'],
    ['databasePrepare', 'no'],
    ['databaseCaFile', 'not/there.pem'],
    ['databaseCaFile', 'package.json'],
    ['databaseCaFile', '../authorities.pem'],
    ['subnetIds', 'subnet-0a1b2c3d4e5f60001 subnet-0a1b2c3d4e5f60002'],
    ['securityGroupIds', 'default'],
    ['maxPollers', '0'],
    ['lingerMs', '0.5'],
    ['keepEventDays', '-1'],
    ['pollSchedule', '1 minute'],
    ['pollAlarmSeconds', '90'],
  ])('refuses the form of %s: %s', (name, value) => {
    expect(check({ ...existing, [name]: value })).toEqual([expect.stringContaining(`\`${name}\``)])
  })

  it.each([
    ['databaseVersion', '17'],
    ['databaseMaxCapacity', '0.25'],
    ['databaseMinCapacity', '9'],
    ['databaseBackupDays', '0'],
    ['databaseDeletionPolicy', 'Keep'],
    ['vpcCidr', '10.0.0.0/28'],
  ])('refuses %s of a new database: %s', (name, value) => {
    expect(check({ database: 'new', [name]: value })).toHaveLength(1)
  })

  it('refuses what contradicts the way to the database', () => {
    const other = { subnetIds: existing.subnetIds }
    expect(check({ databaseUrl, ...other })).toEqual([expect.stringContaining('database=existing only')])
    expect(check({ database: 'new', ...other })).toEqual([expect.stringContaining('database=existing only')])
    expect(check({ database: 'new', databaseAuth: 'secret' })).toEqual([
      expect.stringContaining('left at `iam`'),
    ])
  })

  it('does not repeat a url or a secret', () => {
    const problems = check({ databaseUrl: 'mysql://me:hunter2@db/x', githubWebhookSecret: 'hunter2' })
    expect(problems).toHaveLength(2)
    expect(problems.join()).not.toContain('hunter2')
  })
})

describe('checkNames', () => {
  it('tells the parameters that there are when one is not', () => {
    expect(checkNames(['database', 'databseUrl'], ['database', 'databaseUrl'])).toEqual([
      'There is no parameter `databseUrl`. There are: database, databaseUrl.',
    ])
  })
})
