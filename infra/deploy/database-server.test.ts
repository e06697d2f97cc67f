import { describe, expect, it } from 'vitest'
import { judgeServer, type Server, type ServerNeeds } from './database-server.ts'

const needs: ServerNeeds = {
  host: 'bus.cluster-x.eu-central-1.rds.amazonaws.com',
  port: 5432,
  resourceId: 'cluster-ABC',
  usesTokens: true,
  securityGroupIds: ['sg-f'],
}

const sound: Server = {
  kind: 'cluster',
  id: 'bus',
  version: '17.5',
  host: needs.host,
  readerHost: 'bus.cluster-ro-x.eu-central-1.rds.amazonaws.com',
  takesTokens: true,
  features: ['Lambda'],
  securityGroupIds: ['sg-d'],
  ingress: [{ IpProtocol: 'tcp', FromPort: 5432, ToPort: 5432, UserIdGroupPairs: [{ GroupId: 'sg-f' }] }],
}

function judge(server: Server | undefined, more: Partial<ServerNeeds> = {}): string[] {
  return judgeServer({ ...needs, ...more }, server).map(({ level, text }) => `${level}: ${text}`)
}

describe('judgeServer', () => {
  it('finds nothing wrong with a database that takes tokens, lets the functions in and may invoke', () => {
    expect(judge(sound)).toEqual([])
  })

  it('says that there is no such database', () => {
    expect(judge(undefined)).toEqual([expect.stringMatching(/^error: RDS knows no database .* cluster-ABC/)])
  })

  it('does not look behind a proxy', () => {
    expect(judge(undefined, { resourceId: 'prx-abc' })).toEqual([
      expect.stringMatching(/^note: .* RDS Proxy/),
    ])
  })

  it('refuses the reader of a cluster', () => {
    expect(judge(sound, { host: sound.readerHost ?? '' })).toEqual([
      expect.stringMatching(/^error: .* is the reader of bus.* Give bus\.cluster-x/),
    ])
  })

  it('notes a host that is not the database’s', () => {
    expect(judge(sound, { host: 'bus.example' })).toEqual([
      expect.stringMatching(/^note: .* the same database\?/),
    ])
  })

  it('refuses a version that is too old', () => {
    expect(judge({ ...sound, version: '13.20' })).toEqual([
      expect.stringMatching(/^error: .* 14 is the oldest/),
    ])
  })

  it('gives the command that switches tokens on, where they are used', () => {
    const server = { ...sound, takesTokens: false }
    expect(judge(server)).toEqual([
      expect.stringContaining(
        'aws rds modify-db-cluster --db-cluster-identifier bus --enable-iam-database-authentication',
      ),
    ])
    expect(judge(server, { usesTokens: false })).toEqual([])
  })

  it('gives the command that lets the functions in', () => {
    const elsewhere = {
      IpProtocol: 'tcp',
      FromPort: 5432,
      ToPort: 5432,
      UserIdGroupPairs: [{ GroupId: 'sg-other' }],
    }
    expect(judge({ ...sound, ingress: [elsewhere] })).toEqual([
      expect.stringContaining('--group-id sg-d --protocol tcp --port 5432 --source-group sg-f'),
    ])
    const addresses = { IpProtocol: '-1', IpRanges: [{ CidrIp: '10.0.0.0/8' }] }
    expect(judge({ ...sound, ingress: [addresses] })).toEqual([])
  })

  it('tells how the database comes to its role', () => {
    expect(judge({ ...sound, kind: 'instance', features: [] })).toEqual([
      expect.stringMatching(
        /^note: [\s\S]*aws rds add-role-to-db-instance --db-instance-identifier bus --feature-name Lambda/,
      ),
    ])
  })
})
