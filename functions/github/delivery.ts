import { createHmac, timingSafeEqual } from 'node:crypto'
import type { APIGatewayProxyEventV2 } from 'aws-lambda'

/** What is used of a request to an HTTP API. An empty body is none; null from serverless-offline. */
export interface WebhookRequest extends Pick<APIGatewayProxyEventV2, 'headers' | 'isBase64Encoded'> {
  readonly body?: string | null | undefined
}

/** One delivery of a GitHub webhook. */
export interface Delivery {
  /** The same when GitHub sends it again. */
  readonly id: string
  /** Name of the event to publish. */
  readonly name: string
  readonly payload: object
}

/** Why a request is not a delivery: an HTTP status and a reason for people. */
export interface Refusal {
  readonly status: 400 | 401 | 413 | 415
  readonly reason: string
}

/** The largest body that is read: what an event may hold. */
const maxBodyBytes = 1024 * 1024

/** Checks a request, its signature before anything in it is believed, and reads the delivery. */
export function readDelivery(
  { headers, body, isBase64Encoded }: WebhookRequest,
  secret: string,
): Delivery | Refusal {
  const raw = Buffer.from(body ?? '', isBase64Encoded ? 'base64' : 'utf8')
  if (raw.length > maxBodyBytes) {
    return { status: 413, reason: `Expected a body of at most ${maxBodyBytes} bytes, got ${raw.length}.` }
  }
  if (!isSignedBy(secret, raw, headers['x-hub-signature-256'])) {
    return { status: 401, reason: 'Expected X-Hub-Signature-256 to be made with the secret of this webhook.' }
  }
  const contentType = headers['content-type'] ?? ''
  if (!/^application\/json\s*(;|$)/i.test(contentType)) {
    return { status: 415, reason: `Expected the content type application/json, got "${contentType}".` }
  }
  const { 'x-github-event': event, 'x-github-delivery': id } = headers
  if (!event || !id || id.length > 200) {
    return { status: 400, reason: 'Expected the headers X-GitHub-Event and X-GitHub-Delivery.' }
  }
  const payload = parseObject(raw.toString('utf8'))
  if (payload === null) return { status: 400, reason: 'Expected the body to be a JSON object.' }
  return { id, name: eventName(event, payload), payload }
}

/** `sha256=` and the HMAC of the body in hex; compared in constant time. */
function isSignedBy(secret: string, raw: Buffer, signature: string | undefined): boolean {
  const expected = Buffer.from(`sha256=${createHmac('sha256', secret).update(raw).digest('hex')}`)
  const given = Buffer.from(signature ?? '')
  return given.length === expected.length && timingSafeEqual(given, expected)
}

function parseObject(text: string): object | null {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : null
  } catch {
    return null
  }
}

/** `github.issues.opened`; actions can be anything (repository_dispatch), names of events cannot. */
function eventName(event: string, payload: object): string {
  const action = 'action' in payload && typeof payload.action === 'string' ? payload.action : ''
  const words = ['github', event, action].map((text) => text.toLowerCase().replace(/[^a-z0-9_-]+/g, '-'))
  const name = words.filter((word) => word !== '').join('.')
  return name.slice(0, 200).replace(/\.$/, '')
}
