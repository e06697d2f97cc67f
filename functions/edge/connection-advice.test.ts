import { describe, expect, it } from 'vitest'
import { DatabaseError } from '../../src/index.ts'
import { connectionAdvice } from './connection-advice.ts'
import type { DatabaseSettings } from './database-settings.ts'

const common = { prepare: true, caFile: null }
const byUrl: DatabaseSettings = { auth: 'url', url: 'postgres://shop@db/shop', ...common }
const byToken: DatabaseSettings = {
  auth: 'iam',
  host: 'db',
  port: 5432,
  name: 'shop',
  user: 'loopless_poller',
  region: 'eu-central-1',
  ...common,
}
const failure = (code: string): Error => Object.assign(new Error('failed'), { code })

describe('connectionAdvice', () => {
  it.each<[string, string, DatabaseSettings, RegExp]>([
    [
      'a network without a way',
      'CONNECT_TIMEOUT',
      byToken,
      /security group .* Aurora that has gone to zero capacity/,
    ],
    ['a refused port', 'ECONNREFUSED', byUrl, /Nothing listens there/],
    [
      'a refused token',
      '28000',
      byToken,
      /IAM database authentication is enabled .* rds_iam .* rds-db:connect/,
    ],
    ['a refused password', '28P01', byUrl, /Compare the user and the password of DATABASE_URL/],
    ['a refusal of what is not encrypted', '28000', byUrl, /add sslmode=verify-full/],
    ['a server without TLS', 'ECONNRESET', byToken, /it takes no TLS/],
    ['a certificate that has expired', 'CERT_HAS_EXPIRED', byUrl, /set DATABASE_CA_FILE/],
    ['too many connections', '53300', byUrl, /Lower the reserved concurrency/],
  ])('is there for %s', (_, code, settings, advice) => {
    expect(connectionAdvice(failure(code), settings)).toMatch(advice)
    const wrapped = new DatabaseError('failed', code, { cause: failure(code) })
    expect(connectionAdvice(wrapped, settings)).toMatch(advice)
  })

  it('is not there for what is no matter of connecting', () => {
    expect(connectionAdvice(failure('42P01'), byUrl)).toBeNull()
    expect(connectionAdvice(failure('ECONNRESET'), byUrl)).toBeNull()
    expect(connectionAdvice(new Error('a handler failed'), byUrl)).toBeNull()
  })
})
