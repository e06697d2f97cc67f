import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { afterAll } from 'vitest'

/** What a client of Lambda asked for. */
export interface LambdaRequest {
  readonly path: string | undefined
  /** Of the invocation: `Event` for an asynchronous one. */
  readonly type: string | string[] | undefined
  readonly payload: unknown
}

/** The other end of Invoke, for tests of what asks for it: answers every request with a status, and keeps it. */
export interface LambdaApi {
  readonly url: string
  readonly requests: LambdaRequest[]
  /** Of the next answers. 202 at first. */
  status: number
}

/** Call it at the top level of a test file. */
export async function lambdaApi(): Promise<LambdaApi> {
  const requests: LambdaRequest[] = []
  const server = createServer(async (request, response) => {
    requests.push({
      path: request.url,
      type: request.headers['x-amz-invocation-type'],
      payload: JSON.parse(await text(request)),
    })
    const { status } = api
    response.statusCode = status
    if (status === 429) response.setHeader('x-amzn-errortype', 'TooManyRequestsException')
    response.end(status === 202 ? '' : '{"message":"Rate exceeded"}')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  afterAll(() => server.close())
  const api: LambdaApi = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    status: 202,
  }
  return api
}
