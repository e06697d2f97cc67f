import { createHmac, randomUUID } from 'node:crypto'

/** A new delivery of GitHub, of any kind and content; the function github-webhook names its event `github.KIND`. */
export function signedWebhook(
  kind: string,
  payload: object,
  secret: string,
): { headers: Record<string, string>; body: string } {
  const body = JSON.stringify(payload)
  const headers = {
    'content-type': 'application/json',
    'x-github-event': kind,
    'x-github-delivery': randomUUID(),
    'x-hub-signature-256': `sha256=${createHmac('sha256', secret).update(body).digest('hex')}`,
  }
  return { headers, body }
}
