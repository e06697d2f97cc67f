import { Sha256 } from '@smithy/core/checksum'
import { HttpRequest } from '@smithy/core/protocols'
import { SignatureV4 } from '@smithy/signature-v4'
import { roleCredentials } from './credentials.ts'

/** A request of AWS: a POST, with all its headers but those that sign it. */
export interface UnsignedRequest {
  readonly service: string
  readonly region: string
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** Signs a request with the credentials of the function's role. @returns its headers @throws SettingError */
export async function signRequest(request: UnsignedRequest): Promise<Record<string, string>> {
  const { service, region, url, headers, body } = request
  const signer = new SignatureV4({ service, region, credentials: roleCredentials(), sha256: Sha256 })
  const signed = await signer.sign(
    new HttpRequest({
      method: 'POST',
      hostname: url.hostname,
      path: url.pathname,
      headers: { ...headers, host: url.host },
      body,
    }),
  )
  return signed.headers
}
