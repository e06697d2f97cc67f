// Loads the handler of a Lambda function and runs it: a request is a line on standard input, its answer a marked line on
// standard output (node_process.py). Ends when its input ends, as when LocalStack is killed.

import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, resolve } from 'node:path'
import { createInterface } from 'node:readline'

/**
 * @typedef {{ requestId: string, arn: string, traceId: string, deadlineMs: number, event: string }} Request
 * @typedef {(event: unknown, context: object) => unknown} Handler
 */

const { env } = process

/** @param {object} message */
function answer(message) {
  process.stdout.write(`\0${JSON.stringify(message)}\n`)
}

/** @param {unknown} error */
function described(error) {
  if (!(error instanceof Error)) return { errorType: typeof error, errorMessage: String(error), trace: [] }
  return { errorType: error.name, errorMessage: error.message, trace: (error.stack ?? '').split('\n') }
}

/** @param {unknown} error */
function die(error) {
  console.error(error)
  answer({ error: described(error) })
  process.exit(1)
}

/** @returns {Handler} */
function loadHandler() {
  const [file = '', name = ''] = basename(env['_HANDLER'] ?? '').split('.')
  const path = resolve(env['LAMBDA_TASK_ROOT'] ?? '.', dirname(env['_HANDLER'] ?? ''), file)
  const found = ['.js', '.cjs', '.mjs'].map((ending) => path + ending).find(existsSync)
  if (!found) throw new Error(`Expected a module at ${path} (.js, .cjs or .mjs), found none.`)
  const handler = createRequire(found)(found)[name]
  if (typeof handler !== 'function') throw new Error(`Expected ${env['_HANDLER']} to be a function.`)
  return handler
}

/** @param {Request} request */
function contextOf({ requestId, arn, deadlineMs }) {
  return {
    awsRequestId: requestId,
    invokedFunctionArn: arn,
    functionName: env['AWS_LAMBDA_FUNCTION_NAME'],
    functionVersion: env['AWS_LAMBDA_FUNCTION_VERSION'],
    memoryLimitInMB: env['AWS_LAMBDA_FUNCTION_MEMORY_SIZE'],
    logGroupName: env['AWS_LAMBDA_LOG_GROUP_NAME'],
    logStreamName: env['AWS_LAMBDA_LOG_STREAM_NAME'],
    getRemainingTimeInMillis: () => deadlineMs - Date.now(),
  }
}

/**
 * @param {Handler} handler
 * @param {Request} request
 */
async function run(handler, request) {
  env['_X_AMZN_TRACE_ID'] = request.traceId
  try {
    const result = await handler(JSON.parse(request.event), contextOf(request))
    answer({ result: JSON.stringify(result) ?? 'null' })
  } catch (error) {
    console.error(error)
    answer({ error: described(error), isFatal: false })
  }
}

process.on('uncaughtException', die)
try {
  const handler = loadHandler()
  const requests = createInterface({ input: process.stdin })
  requests.on('line', (line) => void run(handler, JSON.parse(line)))
  requests.on('close', () => process.exit())
  answer({ ready: true })
} catch (error) {
  die(error)
}
