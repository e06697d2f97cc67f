import { once } from 'node:events'
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'

/** An Invoke as it arrived. */
export interface Invocation {
  readonly functionName: string
  readonly qualifier: string | null
  readonly invocationType: string | undefined
  readonly logType: string | undefined
  /** The client context, decoded. */
  readonly context: string | undefined
  /** The region that the request was signed for, or said to be. */
  readonly region: string | undefined
  readonly payload: string
}

/** What Lambda answers; `hang` never does. */
export type Answer =
  | { readonly status: number; readonly body?: string; readonly headers?: Record<string, string> }
  | 'hang'

/** Lambda's Invoke on a port of this machine, that keeps what it is asked. */
export interface Lambda {
  readonly url: string
  readonly invocations: Invocation[]
  /** Decides what is answered from now on. At first: 202. */
  answer(answer: (invocation: Invocation) => Answer | Promise<Answer>): void
  close(): Promise<void>
}

/** Starts it on a free port. */
export async function startLambda(): Promise<Lambda> {
  const invocations: Invocation[] = []
  let decide: (invocation: Invocation) => Answer | Promise<Answer> = () => ({ status: 202 })
  const server = createServer((request, response) => {
    void (async () => {
      const invocation = read(request, await text(request))
      invocations.push(invocation)
      const answer = await decide(invocation)
      if (answer !== 'hang') response.writeHead(answer.status, answer.headers).end(answer.body)
    })()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    invocations,
    answer: (next) => {
      decide = next
    },
    close: async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

function read({ url = '', headers }: IncomingMessage, payload: string): Invocation {
  const { pathname, searchParams } = new URL(url, 'http://lambda')
  const context = headers['x-amz-client-context']?.toString()
  return {
    functionName: decodeURIComponent(
      /^\/2015-03-31\/functions\/(.*)\/invocations$/.exec(pathname)?.[1] ?? '',
    ),
    qualifier: searchParams.get('Qualifier'),
    invocationType: headers['x-amz-invocation-type']?.toString(),
    logType: headers['x-amz-log-type']?.toString(),
    context: context && Buffer.from(context, 'base64').toString(),
    region: /Credential=[^/]+\/\d+\/([^/]+)\//.exec(headers.authorization ?? '')?.[1],
    payload,
  }
}
