import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'

/** What a function's runtime said of an invocation, or of its init. */
export type RuntimeAnswer =
  | { readonly payload: unknown }
  | { readonly errorType: string; readonly errorMessage: string; readonly trace?: ReadonlyArray<string> }

/** An invocation as the Runtime API passes it on. */
export interface RuntimeInvocation {
  readonly requestId: string
  readonly deadlineMs: number
  readonly functionArn: string
  readonly event: unknown
}

/** The Lambda Runtime API of one execution environment: what its runtime asks for invocations and gives answers. */
export interface RuntimeApi {
  /** host:port, for AWS_LAMBDA_RUNTIME_API. */
  readonly address: string
  /** Resolves when the runtime waits for an invocation, undefined; or to why its init failed. */
  idle(): Promise<RuntimeAnswer | undefined>
  /** Gives a runtime that waits its invocation. */
  invoke(invocation: RuntimeInvocation): Promise<RuntimeAnswer>
  close(): Promise<void>
}

const prefix = '/2018-06-01/runtime'

export async function startRuntimeApi(): Promise<RuntimeApi> {
  let waiting = Promise.withResolvers<ServerResponse | RuntimeAnswer>()
  const answers = new Map<string, (answer: RuntimeAnswer) => void>()

  const server = createServer((request, response) => {
    void receive(request, response).catch((error: unknown) => {
      response.writeHead(500).end(String(error))
    })
  })
  async function receive(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = request.url?.replace(prefix, '') ?? ''
    if (path === '/invocation/next') {
      waiting.resolve(response)
      return
    }
    const body: unknown = JSON.parse(await text(request))
    response.writeHead(202).end('{"status":"OK"}')
    if (path === '/init/error') {
      waiting.resolve(body as RuntimeAnswer)
      return
    }
    const [, requestId = '', outcome] = /^\/invocation\/([^/]+)\/(response|error)$/.exec(path) ?? []
    answers.get(requestId)?.(outcome === 'error' ? (body as RuntimeAnswer) : { payload: body })
  }

  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    idle: async () => {
      const asked = await waiting.promise
      return isResponse(asked) ? undefined : asked
    },
    invoke: async ({ requestId, deadlineMs, functionArn, event }) => {
      const response = await waiting.promise
      if (!isResponse(response)) return response
      waiting = Promise.withResolvers()
      const answer = Promise.withResolvers<RuntimeAnswer>()
      answers.set(requestId, answer.resolve)
      response.writeHead(200, {
        'content-type': 'application/json',
        'lambda-runtime-aws-request-id': requestId,
        'lambda-runtime-deadline-ms': deadlineMs,
        'lambda-runtime-invoked-function-arn': functionArn,
        'lambda-runtime-trace-id': `Root=1-${requestId};Sampled=0`,
      })
      response.end(JSON.stringify(event))
      return answer.promise
    },
    close: async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

function isResponse(asked: ServerResponse | RuntimeAnswer): asked is ServerResponse {
  return 'writeHead' in asked
}
