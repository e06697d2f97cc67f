import { setTimeout as sleep } from 'node:timers/promises'
import type { CloudFormationCustomResourceEvent, CloudFormationCustomResourceResponse } from 'aws-lambda'
import type { UpgradeReport } from './upgrade.ts'

/** What CloudFormation asks of a custom resource. */
export type StackRequest = CloudFormationCustomResourceEvent

/** What is done for it, until the signal ends it. */
export interface StackWork {
  /** For Create and Update. */
  upgrade(signal: AbortSignal): Promise<UpgradeReport>
  /** For Delete. */
  retire(signal: AbortSignal): Promise<void>
}

/** Kept free at the end of the invocation for the answer and its tries. */
const answerMs = 15_000
const tryMs = 4_000
/** CloudFormation takes an answer of 4,096 bytes. */
const mostBytes = 4_096

/** Whether CloudFormation waits for an answer to this. */
export function isStackRequest(event: unknown): event is StackRequest {
  return typeof event === 'object' && event !== null && 'ResponseURL' in event && 'RequestType' in event
}

/**
 * Carries out a request of CloudFormation and answers it, whatever becomes of the work: a stack that gets no answer
 * waits for an hour, and then for another to roll back. The work is given up in time for the answer. Nothing that fails
 * holds up the removal of a stack.
 *
 * The address of the answer is in S3: from a VPC without a way to the internet it takes a gateway endpoint for S3,
 * which costs nothing.
 * @param endsAtMs performance.now() when the invocation ends
 * @throws when the answer could not be delivered
 */
export async function answering(request: StackRequest, endsAtMs: number, work: StackWork): Promise<void> {
  const workMs = Math.max(0, Math.floor(endsAtMs - performance.now() - answerMs))
  const outcome = await carryOut(request, work, AbortSignal.timeout(workMs))
  await deliver(request.ResponseURL, answerTo(request, outcome), endsAtMs)
}

type Outcome = { readonly data: Record<string, string> } | { readonly reason: string }

async function carryOut(request: StackRequest, work: StackWork, signal: AbortSignal): Promise<Outcome> {
  try {
    if (request.RequestType === 'Delete') {
      await work.retire(signal)
      return { data: {} }
    }
    const report = await work.upgrade(signal)
    return { data: { SchemaVersion: report.schemaVersion, HandlerSet: report.handlerSet } }
  } catch (error) {
    console.error(error)
    // the database may be gone already
    if (request.RequestType === 'Delete') return { data: {} }
    return { reason: error instanceof Error ? error.message : String(error) }
  }
}

function answerTo(request: StackRequest, outcome: Outcome): string {
  const { StackId, RequestId, LogicalResourceId } = request
  // always the same: another id would make CloudFormation delete the one before
  const PhysicalResourceId = 'PhysicalResourceId' in request ? request.PhysicalResourceId : 'loopless'
  const common = { PhysicalResourceId, StackId, RequestId, LogicalResourceId }
  if ('data' in outcome) return bodyOf({ ...common, Status: 'SUCCESS', Data: outcome.data })
  let reason = outcome.reason.toWellFormed()
  for (;;) {
    const body = bodyOf({ ...common, Status: 'FAILED', Reason: reason })
    const excess = Buffer.byteLength(body) - mostBytes
    if (excess <= 0) return body
    // a character is a byte at least: never too short, and soon short enough
    reason = `${reason.slice(0, -Math.max(2, Math.ceil(excess / 6)) - 1).toWellFormed()}…`
  }
}

function bodyOf(answer: CloudFormationCustomResourceResponse): string {
  return JSON.stringify(answer)
}

async function deliver(url: string, body: string, endsAtMs: number): Promise<void> {
  for (let pauseMs = 200; ; pauseMs *= 2) {
    const leftMs = endsAtMs - performance.now()
    const failure = await put(url, body, Math.floor(Math.max(500, Math.min(tryMs, leftMs))))
    if (failure === null) return
    console.error(JSON.stringify({ level: 'error', message: `CloudFormation got no answer: ${failure}` }))
    if (endsAtMs - performance.now() < pauseMs + 500) {
      throw new Error(
        `CloudFormation got no answer (${failure}): a function in a VPC reaches it through a gateway endpoint for S3. The answer was: ${body}`,
      )
    }
    await sleep(pauseMs)
  }
}

/** @returns null when the answer was taken, else why not */
async function put(url: string, body: string, timeoutMs: number): Promise<string | null> {
  try {
    const response = await fetch(url, {
      method: 'PUT',
      body: Buffer.from(body), // as text it would get a content type, and the address was signed for none
      signal: AbortSignal.timeout(timeoutMs),
    })
    await response.arrayBuffer()
    return response.ok ? null : `status ${response.status}`
  } catch (error) {
    const { message, cause } = error as Error
    return cause instanceof Error ? `${message}: ${cause.message}` : message
  }
}
