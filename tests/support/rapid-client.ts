// Preloaded into AWS's runtime interface client (interface-client.ts) in place of its native HTTP client, which takes
// cmake and a minute to compile. Says the same to the Lambda Runtime API, in the same order.

import { writeSync } from 'node:fs'
import { type IncomingHttpHeaders, request } from 'node:http'
import { registerHooks } from 'node:module'

registerHooks({
  resolve: (specifier, context, nextResolve) =>
    specifier === './rapid-client.node'
      ? { url: import.meta.url, shortCircuit: true }
      : nextResolve(specifier, context),
})

const api = `http://${process.env['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation`

/** The native client blocks while it answers. Here the next invocation waits for the answer to the last one. */
let answered: Promise<unknown> = Promise.resolve()

interface Reply {
  headers: IncomingHttpHeaders
  bodyJson: string
}

let isListening = false

export async function next(): Promise<Reply> {
  // Tells the test when the function has been told, if it listens at all: behind its own listener.
  if (!isListening && process.listenerCount('SIGTERM') > 0) {
    isListening = true
    process.once('SIGTERM', () => writeSync(3, 'SIGTERM'))
  }
  await answered
  return call('GET', 'next')
}

export function done(id: string, body: string): void {
  answered = call('POST', `${id}/response`, body)
}

export function error(id: string, body: string, xray: string): void {
  answered = call('POST', `${id}/error`, body, { 'lambda-runtime-function-xray-error-cause': xray })
}

function call(method: string, path: string, body?: string, headers = {}): Promise<Reply> {
  const { promise, resolve, reject } = Promise.withResolvers<Reply>()
  const sent = request(`${api}/${path}`, { method, headers }, (reply) => {
    let bodyJson = ''
    reply.setEncoding('utf8')
    reply.on('data', (text) => {
      bodyJson += text
    })
    reply.on('end', () => resolve({ headers: reply.headers, bodyJson }))
  })
  sent.on('error', reject)
  sent.end(body)
  return promise
}
