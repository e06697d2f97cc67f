import { setTimeout as sleep } from 'node:timers/promises'
import { type Environment, SettingError, setting } from './setting.ts'

const tries = 3
const timeoutMs = 5_000

/** The function's role may not read the secret. */
class DeniedSecretError extends SettingError {}

/** Whether a secret may not be read, or not yet: IAM takes its time to let all know of a role. */
export function isDeniedSecret(error: unknown): boolean {
  return error instanceof DeniedSecretError
}

/**
 * Asks Secrets Manager for the text of a secret. One signed request: the SDK's client for it is 160 KB in each bundle,
 * which every cold start compiles (2026-11-25: 12 ms instead of 5), whichever way it signs in. Tried three times.
 * @throws SettingError when it is refused, or cannot be reached, with what to do
 */
export async function fetchSecret(arn: string): Promise<string> {
  for (let attempt = 1; ; attempt++) {
    const answer = await ask(arn)
    if ('text' in answer) return answer.text
    if (answer.isDenied) throw new DeniedSecretError(answer.problem)
    if (attempt === tries || !answer.mayPass) throw new SettingError(answer.problem)
    await sleep(100 * 2 ** attempt)
  }
}

type Answer =
  | { readonly text: string }
  | { readonly problem: string; readonly mayPass: boolean; readonly isDenied?: boolean }

async function ask(arn: string): Promise<Answer> {
  const request = await signedRequest(arn, process.env)
  let response: Response
  let body: { SecretString?: unknown; __type?: unknown; message?: unknown; Message?: unknown }
  try {
    response = await fetch(request.url, { ...request, signal: AbortSignal.timeout(timeoutMs) })
    body = (await response.json()) as typeof body
  } catch (error) {
    const { message, cause } = error as Error
    const why = cause instanceof Error ? cause.message : message
    const problem = `Secrets Manager could not be asked for ${arn}: ${why}. From a VPC it takes an interface endpoint for secretsmanager, or a way to the internet.`
    return { problem, mayPass: true }
  }
  if (response.ok && typeof body.SecretString === 'string') return { text: body.SecretString }
  if (response.ok) return { problem: `Expected the secret ${arn} to be text, got binary.`, mayPass: false }
  const type = String(body.__type ?? response.status).replace(/^.*#/, '')
  return {
    problem: `Secrets Manager refused ${arn}: ${type}: ${body.message ?? body.Message ?? 'no reason given'}. The function's role needs secretsmanager:GetSecretValue on it, and kms:Decrypt on its key when it has one of its own.`,
    mayPass: response.status >= 500 || response.status === 429 || type === 'ThrottlingException',
    isDenied: type === 'AccessDeniedException',
  }
}

interface SignedRequest {
  readonly url: URL
  readonly method: string
  readonly headers: Record<string, string>
  readonly body: string
}

async function signedRequest(arn: string, environment: Environment): Promise<SignedRequest> {
  // imported here, so that a function that signs in otherwise does not load it
  const { signRequest } = await import('./sign-request.ts')
  const region = arn.match(/^arn:[^:]+:secretsmanager:([^:]+):/)?.[1] ?? setting('AWS_REGION', environment)
  const url = endpointIn(region, environment)
  const body = JSON.stringify({ SecretId: arn })
  const headers = {
    'content-type': 'application/x-amz-json-1.1',
    'x-amz-target': 'secretsmanager.GetSecretValue',
  }
  const signed = await signRequest({ service: 'secretsmanager', region, url, headers, body })
  return { url, method: 'POST', headers: signed, body }
}

/** The variables are the SDK's, which LocalStack is reached by. */
function endpointIn(region: string, environment: Environment): URL {
  const given = environment['AWS_ENDPOINT_URL_SECRETS_MANAGER'] || environment['AWS_ENDPOINT_URL']
  const suffix = region.startsWith('cn-') ? 'amazonaws.com.cn' : 'amazonaws.com'
  return new URL(given || `https://secretsmanager.${region}.${suffix}/`)
}
