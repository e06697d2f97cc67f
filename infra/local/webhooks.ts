import { createHmac, randomUUID } from 'node:crypto'
import examples from '@octokit/webhooks-examples' with { type: 'json' }

/** Real payloads of each webhook. Their own types take the file for a CommonJS module with a default export. */
export const webhookKinds = examples as unknown as ReadonlyArray<{ name: string; examples: object[] }>

/** A webhook as GitHub sends it. */
export interface Webhook {
  readonly headers: Record<string, string>
  readonly body: string
}

/** Deliveries under way at once; each keeps a copy of the function busy. */
const concurrency = 4

/** The real payloads of @octokit/webhooks-examples, signed with a secret; each is a new delivery. */
export function signedWebhooks(secret: string): Webhook[] {
  return webhookKinds.flatMap(({ name, examples: payloads }) =>
    payloads.map((payload) => {
      const body = JSON.stringify(payload)
      const signature = createHmac('sha256', secret).update(body).digest('hex')
      const headers = {
        'content-type': 'application/json',
        'user-agent': 'GitHub-Hookshot/0000000',
        'x-github-event': name,
        'x-github-delivery': randomUUID(),
        'x-hub-signature-256': `sha256=${signature}`,
      }
      return { headers, body }
    }),
  )
}

/**
 * Posts webhooks, a few at once, in order.
 *
 * @param onPublished gets the id of each event
 * @throws when one is not accepted
 */
export async function postWebhooks(
  url: string,
  webhooks: ReadonlyArray<Webhook>,
  onPublished: (id: string) => void,
): Promise<void> {
  const waiting = [...webhooks]
  const postNext = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const response = await fetch(url, { method: 'POST', ...next })
      const answer = await response.text()
      if (response.status !== 202) {
        throw new Error(
          `The webhook ${next.headers['x-github-event']} was refused: ${response.status} ${answer}`,
        )
      }
      onPublished((JSON.parse(answer) as { id: string }).id)
    }
  }
  await Promise.all(Array.from({ length: concurrency }, postNext))
}
