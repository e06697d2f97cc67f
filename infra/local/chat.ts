import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'

/** The chat that the handler announce-issue posts to; it is out of order for a while at first. */
export interface Chat {
  readonly url: string
  /** Requests that were answered with 503. */
  readonly refused: number
  /** Announcements that arrived, without those that came again with the same idempotency key. */
  readonly announced: number
  close(): void
}

/** From its first request on, the chat answers 503 for as long. */
const outageMs = 2_500

/** Starts the chat on a free port of 127.0.0.1. */
export async function startChat(): Promise<Chat> {
  const announced = new Set<string | undefined>()
  let refused = 0
  let worksAtMs: number | undefined
  const server: Server = createServer((request, response) => {
    worksAtMs ??= performance.now() + outageMs
    if (performance.now() < worksAtMs) {
      refused++
      response.writeHead(503, { 'retry-after': '1' }).end('The chat is down for maintenance.')
      return
    }
    announced.add(request.headers['idempotency-key']?.toString())
    response.end('Announced.')
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    get refused() {
      return refused
    },
    get announced() {
      return announced.size
    },
    close() {
      server.close()
      server.closeAllConnections()
    },
  }
}
