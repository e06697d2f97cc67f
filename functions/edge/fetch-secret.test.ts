import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { fetchSecret } from './fetch-secret.ts'

const arn = 'arn:aws:secretsmanager:eu-west-3:123456789012:secret:shop-AbCdEf'

let answers: { status: number; body: string }[] = []
let requests: { headers: IncomingHttpHeaders; body: string }[] = []
const server = createServer(async (request, response) => {
  requests.push({ headers: request.headers, body: await text(request) })
  const { status, body } = answers.shift() ?? { status: 500, body: '{}' }
  response.writeHead(status).end(body)
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
afterAll(() => server.close())
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`

beforeEach(() => {
  answers = []
  requests = []
  vi.stubEnv('AWS_ENDPOINT_URL_SECRETS_MANAGER', url)
  vi.stubEnv('AWS_ACCESS_KEY_ID', 'AKID')
  vi.stubEnv('AWS_SECRET_ACCESS_KEY', 'a secret')
  vi.stubEnv('AWS_SESSION_TOKEN', 'a session')
})
afterEach(() => vi.unstubAllEnvs())

const given = { status: 200, body: '{"SecretString":"hush"}' }

describe('fetchSecret', () => {
  it('asks with a request that is signed by the role of the function, for the region of the secret', async () => {
    answers = [given]
    expect(await fetchSecret(arn)).toBe('hush')
    expect(requests).toEqual([
      {
        headers: expect.objectContaining({
          'content-type': 'application/x-amz-json-1.1',
          'x-amz-target': 'secretsmanager.GetSecretValue',
          'x-amz-security-token': 'a session',
          authorization: expect.stringMatching(
            /^AWS4-HMAC-SHA256 Credential=AKID\/\d{8}\/eu-west-3\/secretsmanager\/aws4_request, SignedHeaders=content-type;host;x-amz-\S+, Signature=[0-9a-f]{64}$/,
          ),
        }),
        body: JSON.stringify({ SecretId: arn }),
      },
    ])
  })

  it.each([
    ['an error of the service', { status: 500, body: '{"__type":"InternalServiceError"}' }],
    [
      'too many requests',
      { status: 400, body: '{"__type":"ThrottlingException","message":"Rate exceeded"}' },
    ],
    ['an answer that is no JSON', { status: 503, body: '<html>' }],
  ])('asks again after %s', async (_, failure) => {
    answers = [failure, failure, given]
    expect(await fetchSecret(arn)).toBe('hush')
  })

  it('gives up after three tries', async () => {
    await expect(fetchSecret(arn)).rejects.toThrow(`Secrets Manager refused ${arn}: 500: no reason given.`)
    expect(requests).toHaveLength(3)
  })

  it('says what a role needs that may not read the secret, and does not ask again', async () => {
    answers = [
      { status: 400, body: '{"__type":"com.amazon#AccessDeniedException","Message":"not authorized"}' },
    ]
    await expect(fetchSecret(arn)).rejects.toThrow(
      `Secrets Manager refused ${arn}: AccessDeniedException: not authorized. The function's role needs secretsmanager:GetSecretValue`,
    )
    expect(requests).toHaveLength(1)
  })

  it('says what a VPC needs when nobody answers', async () => {
    vi.stubEnv('AWS_ENDPOINT_URL_SECRETS_MANAGER', 'http://nowhere.invalid')
    await expect(fetchSecret(arn)).rejects.toThrow(
      /^Secrets Manager could not be asked for .* From a VPC it takes an interface endpoint for secretsmanager/,
    )
  })

  it('refuses a secret that is not text', async () => {
    answers = [{ status: 200, body: '{"SecretBinary":"aHVzaA=="}' }]
    await expect(fetchSecret(arn)).rejects.toThrow(`Expected the secret ${arn} to be text, got binary.`)
  })

  it('says which credential is missing', async () => {
    vi.stubEnv('AWS_ACCESS_KEY_ID', undefined)
    await expect(fetchSecret(arn)).rejects.toThrow(
      'Expected the environment variable AWS_ACCESS_KEY_ID to be set',
    )
  })
})
