import type { APIGatewayProxyStructuredResultV2 } from 'aws-lambda'
import { defineEvent, InvalidEventError, publish } from '../src/index.ts'
import { beginInvocation, sql } from './edge/environment.ts'
import { reconnecting } from './edge/reconnecting.ts'
import { setting } from './edge/setting.ts'
import { readDelivery, type WebhookRequest } from './github/delivery.ts'

const secret = setting('GITHUB_WEBHOOK_SECRET')

/**
 * POST /webhooks/github: publishes what GitHub sends, as it was sent: what a handler needs of it is the handler's
 * to check. A delivery that comes again, or twice at once, is published once.
 * @returns 202 with the id of the event; 400, 401, 413 or 415 with the reason
 */
export async function handler(request: WebhookRequest): Promise<APIGatewayProxyStructuredResultV2> {
  const delivery = readDelivery(request, secret)
  if ('reason' in delivery) return answer(delivery.status, { error: delivery.reason })
  const { id: dedupeKey, name, payload } = delivery
  try {
    await beginInvocation()
    // Your own writes belong here: they commit together with the event.
    const id = await reconnecting(() =>
      sql.begin((tx) => publish(tx, defineEvent(name)(payload), { dedupeKey })),
    )
    return answer(202, { id })
  } catch (error) {
    if (!(error instanceof InvalidEventError) || error.code !== 'PAYLOAD_TOO_LARGE') throw error
    return answer(413, { error: error.message })
  }
}

function answer(statusCode: number, body: object): APIGatewayProxyStructuredResultV2 {
  return { statusCode, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }
}
