import { certificatesOf } from 'loopless:rds-certificates'
import { readFileSync } from 'node:fs'
import { regionOf } from './database-settings.ts'
import { SettingError } from './setting.ts'

/**
 * The certificate authorities that a database's certificate must come from, as PEM. Undefined: those that Node knows,
 * which sign for RDS Proxy, and for most databases that are not in RDS.
 * @param caFile DATABASE_CA_FILE: trusted in place of them
 * @throws SettingError when the file cannot be read, or the package knows no authority of the region
 */
export function certificatesFor(host: string, caFile: string | null): string[] | undefined {
  if (caFile !== null) return [readCertificates(caFile)]
  const region = regionOf(host)
  if (region === null || /\.proxy-[a-z0-9]+\./i.test(host)) return undefined
  const certificates = certificatesOf(region)
  if (certificates.length > 0) return certificates
  throw new SettingError(
    `This package has no certificate authority of RDS in ${region}. Set DATABASE_CA_FILE (deploy with --param databaseCaFile=…) to /var/runtime/ca-cert.pem, which Lambda provides, or to a file from https://truststore.pki.rds.amazonaws.com that is packaged with the function.`,
  )
}

function readCertificates(path: string): string {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw new SettingError(`Cannot read DATABASE_CA_FILE: ${(cause as Error).message}.`, { cause })
  }
  if (text.includes('-----BEGIN CERTIFICATE-----')) return text
  throw new SettingError(`Expected DATABASE_CA_FILE to be a PEM file, found no certificate in ${path}.`)
}
