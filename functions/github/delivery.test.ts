import { createHmac } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { readDelivery } from './delivery.ts'

const secret = 'It’s a secret'
const sign = (body: string | Buffer): string =>
  `sha256=${createHmac('sha256', secret).update(body).digest('hex')}`

function request(body: string, headers: Record<string, string> = {}) {
  return {
    body,
    isBase64Encoded: false,
    headers: {
      'content-type': 'application/json',
      'x-github-event': 'issues',
      'x-github-delivery': '72d3162e-cc78-11e3-81ab-4c9367dc0958',
      'x-hub-signature-256': sign(body),
      ...headers,
    },
  }
}

describe('readDelivery', () => {
  it('reads a signed delivery', () => {
    const body = '{"action":"opened","text":"ä😀"}'
    expect(readDelivery(request(body), secret)).toEqual({
      id: '72d3162e-cc78-11e3-81ab-4c9367dc0958',
      name: 'github.issues.opened',
      payload: { action: 'opened', text: 'ä😀' },
    })
  })

  it('checks the signature that GitHub documents for its example', () => {
    const example = {
      body: 'Hello, World!',
      isBase64Encoded: false,
      headers: {
        'x-hub-signature-256': 'sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17',
      },
    }
    // signed rightly, and then not a delivery
    expect(readDelivery(example, "It's a Secret to Everybody")).toMatchObject({ status: 415 })
    expect(readDelivery(example, 'another')).toMatchObject({ status: 401 })
  })

  it('checks the bytes, not the text, of a body that came encoded', () => {
    const bytes = Buffer.from('{"action":"opened"}')
    const encoded = { ...request('', { 'x-hub-signature-256': sign(bytes) }), body: bytes.toString('base64') }
    expect(readDelivery({ ...encoded, isBase64Encoded: true }, secret)).toMatchObject({
      name: 'github.issues.opened',
    })
    expect(readDelivery(encoded, secret)).toMatchObject({ status: 401 })
  })

  it.each([
    ['no signature', ''],
    ['a signature of other bytes', sign('{"action":"closed"}')],
    ['a signature cut short', sign('{}').slice(0, -1)],
    ['a signature without its prefix', sign('{}').slice(7)],
    ['a signature in another case', sign('{}').toUpperCase()],
    ['a signature that is longer in bytes than in characters', `sha256=${'é'.repeat(64)}`],
  ])('refuses %s with 401', (_, signature) => {
    expect(readDelivery(request('{}', { 'x-hub-signature-256': signature }), secret)).toMatchObject({
      status: 401,
    })
  })

  it.each([undefined, null, ''])('refuses an empty request that nobody signed with 401: %j', (body) => {
    const empty = { body, isBase64Encoded: false, headers: {} }
    expect(readDelivery(empty, secret)).toMatchObject({ status: 401 })
  })

  it.each([
    ['a form', 415, '{}', { 'content-type': 'application/x-www-form-urlencoded' }],
    ['no content type', 415, '{}', { 'content-type': '' }],
    ['no event', 400, '{}', { 'x-github-event': '' }],
    ['no delivery id', 400, '{}', { 'x-github-delivery': '' }],
    ['a delivery id that is no id', 400, '{}', { 'x-github-delivery': 'x'.repeat(201) }],
    ['what is no JSON', 400, '{"action":', {}],
    ['an empty body', 400, '', {}],
    ['an array', 400, '[]', {}],
    ['null', 400, 'null', {}],
    ['more than 1 MiB', 413, JSON.stringify('x'.repeat(1024 * 1024)), {}],
  ])('refuses %s with %i', (_, status, body, headers) => {
    expect(readDelivery(request(body, headers), secret)).toMatchObject({ status })
  })

  it('takes a content type with parameters', () => {
    const delivery = readDelivery(
      request('{}', { 'content-type': 'application/json; charset=utf-8' }),
      secret,
    )
    expect(delivery).toMatchObject({ name: 'github.issues' })
  })

  it.each([
    ['push', '{}', 'github.push'],
    ['repository_dispatch', '{"action":"on-demand-test"}', 'github.repository_dispatch.on-demand-test'],
    ['repository_dispatch', '{"action":"Deploy it. Now!"}', 'github.repository_dispatch.deploy-it-now-'],
    ['repository_dispatch', '{"action":"…"}', 'github.repository_dispatch.-'],
    [
      'repository_dispatch',
      `{"action":"${'x'.repeat(300)}"}`,
      `github.repository_dispatch.${'x'.repeat(173)}`,
    ],
    ['x'.repeat(192), '{"action":"cut away"}', `github.${'x'.repeat(192)}`],
    ['issues', '{"action":7}', 'github.issues'],
  ])('names %s with %s', (event, body, name) => {
    expect(readDelivery(request(body, { 'x-github-event': event }), secret)).toMatchObject({ name })
  })
})
