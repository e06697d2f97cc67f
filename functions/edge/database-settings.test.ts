import { describe, expect, it } from 'vitest'
import { readConnectTimeoutSeconds, readDatabaseSettings } from './database-settings.ts'

const url = 'postgres://somebody:secret@db.example.com/shop'
const arn = 'arn:aws:secretsmanager:eu-central-1:123456789012:secret:shop-AbCdEf'
const iam = {
  DATABASE_HOST: 'db.example.com',
  DATABASE_NAME: 'shop',
  DATABASE_USER: 'loopless_poller',
  AWS_REGION: 'eu-central-1',
}
const common = { prepare: true, caFile: null }

describe('readDatabaseSettings', () => {
  it.each([
    ['a url', { DATABASE_URL: url }, { auth: 'url', url, ...common }],
    [
      'a url and empty values beside it',
      { DATABASE_URL: url, DATABASE_AUTH: '', DATABASE_HOST: '' },
      { auth: 'url', url, ...common },
    ],
    [
      'what a token needs, which is the default',
      iam,
      {
        auth: 'iam',
        host: 'db.example.com',
        port: 5432,
        name: 'shop',
        user: 'loopless_poller',
        region: 'eu-central-1',
        ...common,
      },
    ],
    [
      'DATABASE_AUTH before a url',
      { ...iam, DATABASE_URL: url, DATABASE_AUTH: 'iam' },
      {
        auth: 'iam',
        host: 'db.example.com',
        port: 5432,
        name: 'shop',
        user: 'loopless_poller',
        region: 'eu-central-1',
        ...common,
      },
    ],
    [
      'a secret that holds all',
      { DATABASE_AUTH: 'secret', DATABASE_SECRET_ARN: arn },
      {
        auth: 'secret',
        secretArn: arn,
        host: null,
        port: null,
        name: null,
        ...common,
      },
    ],
    [
      'a secret with a place beside it',
      {
        DATABASE_AUTH: 'secret',
        DATABASE_SECRET_ARN: arn,
        DATABASE_HOST: 'db.example.com',
        DATABASE_PORT: '5433',
        DATABASE_NAME: 'shop',
      },
      {
        auth: 'secret',
        secretArn: arn,
        host: 'db.example.com',
        port: 5433,
        name: 'shop',
        ...common,
      },
    ],
    [
      'a pooler and an authority',
      { DATABASE_URL: url, DATABASE_PREPARE: 'false', DATABASE_CA_FILE: 'ca.pem' },
      {
        auth: 'url',
        url,
        prepare: false,
        caFile: 'ca.pem',
      },
    ],
  ])('reads %s', (_, environment, expected) => {
    expect(readDatabaseSettings(environment)).toEqual(expected)
  })

  it.each([
    ['shop.cluster-c1.eu-west-3.rds.amazonaws.com', 'eu-west-3'],
    ['shop.proxy-c1.us-gov-west-1.rds.amazonaws.com', 'us-gov-west-1'],
    ['shop.c1.cn-north-1.rds.amazonaws.com.cn', 'cn-north-1'],
    ['db.example.com', 'eu-central-1'],
  ])('takes the region from %s when it can: %s', (host, region) => {
    expect(readDatabaseSettings({ ...iam, DATABASE_HOST: host })).toMatchObject({ region })
  })

  it.each([
    [
      'nothing',
      {},
      /^Expected DATABASE_HOST to be set, as DATABASE_AUTH is iam\. Set DATABASE_HOST, DATABASE_NAME and DATABASE_USER; or .*; or DATABASE_URL\.$/,
    ],
    ['no name', { ...iam, DATABASE_NAME: '' }, /^Expected DATABASE_NAME to be set/],
    ['no user', { ...iam, DATABASE_USER: '' }, /^Expected DATABASE_USER to be set/],
    ['no region', { ...iam, AWS_REGION: '' }, /^Expected the environment variable AWS_REGION to be set/],
    [
      'a host with a port',
      { ...iam, DATABASE_HOST: 'db.example.com:5432' },
      /^Expected DATABASE_HOST to be a host name without a port or a scheme, got "db\.example\.com:5432"\.$/,
    ],
    [
      'a port that is none',
      { ...iam, DATABASE_PORT: '54x2' },
      /^Expected DATABASE_PORT to be 1–65535, got "54x2"\.$/,
    ],
    [
      'a secret without its ARN',
      { DATABASE_AUTH: 'secret' },
      /^Expected DATABASE_SECRET_ARN to be set, as DATABASE_AUTH is secret/,
    ],
    ['no url', { DATABASE_AUTH: 'url' }, /^Expected DATABASE_URL to be like .*, got none\.$/],
    [
      'another way to sign in',
      { DATABASE_AUTH: 'kerberos' },
      /^Expected DATABASE_AUTH to be iam, secret or url, got "kerberos"\.$/,
    ],
    [
      'a word for prepare',
      { DATABASE_URL: url, DATABASE_PREPARE: 'no' },
      /^Expected DATABASE_PREPARE to be true or false, got "no"\.$/,
    ],
  ])('refuses %s, and says which variable it is', (_, environment, message) => {
    expect(() => readDatabaseSettings(environment)).toThrow(message)
  })

  it('does not repeat a url that it refuses: it may hold a password', () => {
    expect(() => readDatabaseSettings({ DATABASE_URL: 'mysql://me:hush@db/shop' })).toThrow(
      /^(?!.*hush).*DATABASE_URL/,
    )
  })
})

describe('readConnectTimeoutSeconds', () => {
  it.each([
    ['35', 35],
    ['', 10],
    [undefined, 10],
  ])('reads %o', (text, seconds) => {
    expect(readConnectTimeoutSeconds({ DATABASE_CONNECT_TIMEOUT_SECONDS: text })).toBe(seconds)
  })

  it.each(['0', '-1', '0.5', '901', '35s'])('refuses %o', (text) => {
    expect(() => readConnectTimeoutSeconds({ DATABASE_CONNECT_TIMEOUT_SECONDS: text })).toThrow(
      `Expected DATABASE_CONNECT_TIMEOUT_SECONDS to be 1–900, got "${text}".`,
    )
  })
})
