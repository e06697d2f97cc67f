import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { signToken } from './token.ts'

const settings = {
  auth: 'iam',
  host: 'shop.cluster-c1.eu-west-3.rds.amazonaws.com',
  port: 5432,
  name: 'shop',
  user: 'loopless_poller',
  region: 'eu-west-3',
  prepare: true,
  caFile: null,
} as const
const begin = Date.UTC(2030, 0, 1)

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['Date'], now: begin })
  vi.stubEnv('AWS_ACCESS_KEY_ID', 'AKIDONE')
  vi.stubEnv('AWS_SECRET_ACCESS_KEY', 'a secret')
  vi.stubEnv('AWS_SESSION_TOKEN', 'session one')
})
afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllEnvs()
})

const partsOf = (token: string) => Object.fromEntries(new URL(`https://${token}`).searchParams)

describe('signToken', () => {
  it('signs for the host, the port, the user and the region, for 15 minutes', async () => {
    const token = await signToken(settings)
    expect(token).toMatch(/^shop\.cluster-c1\.eu-west-3\.rds\.amazonaws\.com:5432\/\?/)
    expect(partsOf(token)).toMatchObject({
      Action: 'connect',
      DBUser: 'loopless_poller',
      'X-Amz-Credential': 'AKIDONE/20300101/eu-west-3/rds-db/aws4_request',
      'X-Amz-Date': '20300101T000000Z',
      'X-Amz-Expires': '900',
      'X-Amz-Security-Token': 'session one',
    })
  })

  it('signs anew each time, so that no token is ever used after it expired', async () => {
    const first = await signToken(settings)
    vi.setSystemTime(begin + 16 * 60_000)
    const second = await signToken(settings)
    expect(second).not.toBe(first)
    expect(partsOf(second)['X-Amz-Date']).toBe('20300101T001600Z')
  })

  it('uses the credentials that the function has by then', async () => {
    vi.stubEnv('AWS_ACCESS_KEY_ID', 'AKIDTWO')
    vi.stubEnv('AWS_SESSION_TOKEN', undefined)
    const parts = partsOf(await signToken(settings))
    expect(parts['X-Amz-Credential']).toMatch(/^AKIDTWO\//)
    expect(parts).not.toHaveProperty('X-Amz-Security-Token')
  })

  it('says which credential is missing', async () => {
    vi.stubEnv('AWS_SECRET_ACCESS_KEY', undefined)
    await expect(signToken(settings)).rejects.toThrow(
      'Expected the environment variable AWS_SECRET_ACCESS_KEY to be set',
    )
  })
})
