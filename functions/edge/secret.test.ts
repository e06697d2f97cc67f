import { beforeEach, describe, expect, it } from 'vitest'
import { secretReader } from './secret.ts'

const arn = 'arn:aws:secretsmanager:eu-central-1:123456789012:secret:shop-AbCdEf'
const text = JSON.stringify({
  username: 'shop',
  password: 'hush',
  host: 'db',
  port: 5433,
  dbname: 'shop',
  engine: 'postgres',
})

let nowMs = 0
let reads = 0
let answer: () => Promise<string>
beforeEach(() => {
  nowMs = 0
  reads = 0
  answer = async () => text
})
const reader = () =>
  secretReader(
    arn,
    () => {
      reads++
      return answer()
    },
    () => nowMs,
  )

describe('secretReader', () => {
  it('reads what RDS puts into a secret', async () => {
    expect(await reader().read()).toEqual({
      username: 'shop',
      password: 'hush',
      host: 'db',
      port: 5433,
      name: 'shop',
    })
  })

  it('does without a place', async () => {
    answer = async () => '{"username":"shop","password":""}'
    expect(await reader().read()).toEqual({
      username: 'shop',
      password: '',
      host: null,
      port: null,
      name: null,
    })
  })

  it('asks once for connections that are opened within 30 s, and again after that', async () => {
    const secret = reader()
    await Promise.all([secret.read(), secret.read()])
    nowMs = 29_999
    await secret.read()
    expect(reads).toBe(1)
    nowMs = 30_000
    await secret.read()
    expect(reads).toBe(2)
  })

  it('asks again at once after what it read was forgotten', async () => {
    const secret = reader()
    await secret.read()
    secret.forget()
    answer = async () => text.replace('hush', 'new')
    expect(await secret.read()).toMatchObject({ password: 'new' })
  })

  it('keeps no failure', async () => {
    const secret = reader()
    answer = () => Promise.reject(new Error('AccessDeniedException'))
    await expect(secret.read()).rejects.toThrow('AccessDeniedException')
    answer = async () => text
    expect(await secret.read()).toMatchObject({ username: 'shop' })
  })

  it.each([
    'hush',
    '"hush"',
    'null',
    '{"password":"hush"}',
    '{"username":"shop"}',
    '{"username":"","password":"hush"}',
  ])('refuses %s, and does not repeat it', async (wrong) => {
    answer = async () => wrong
    const failure = await reader()
      .read()
      .catch((error: Error) => error)
    expect(failure).toMatchObject({
      name: 'SettingError',
      message: `Expected the secret ${arn} (DATABASE_SECRET_ARN) to be JSON with "username" and "password", as RDS makes it.`,
    })
  })
})
