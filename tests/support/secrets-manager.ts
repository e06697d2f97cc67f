import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll } from 'vitest'

/** The other end of GetSecretValue, for tests of what asks for it. */
export interface SecretsManager {
  readonly url: string
  /** What the secret holds; null: nobody may read it. */
  secret: object | null
  /** How often it was asked for. */
  reads: number
}

/** Call it at the top level of a test file. */
export async function secretsManager(): Promise<SecretsManager> {
  const server = createServer((_, response) => {
    manager.reads++
    response.setHeader('content-type', 'application/x-amz-json-1.1')
    if (manager.secret !== null) {
      response.end(JSON.stringify({ Name: 'shop', SecretString: JSON.stringify(manager.secret) }))
      return
    }
    response.statusCode = 400
    response.end('{"__type":"AccessDeniedException","Message":"You may not"}')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  afterAll(() => server.close())
  const manager: SecretsManager = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    secret: null,
    reads: 0,
  }
  return manager
}
