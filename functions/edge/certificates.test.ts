import { X509Certificate } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { certificatesFor } from './certificates.ts'

const directory = await mkdtemp(join(tmpdir(), 'loopless-certificates-'))
afterAll(() => rm(directory, { recursive: true }))

describe('certificatesFor', () => {
  it.each(['eu-central-1', 'us-east-1', 'ap-southeast-4', 'sa-east-1'])(
    'knows those of RDS in %s, which last',
    (region) => {
      const certificates = certificatesFor(`shop.cluster-c1.${region}.rds.amazonaws.com`, null)
      expect(certificates).toHaveLength(3)
      for (const text of certificates ?? []) {
        const certificate = new X509Certificate(text)
        expect(certificate.subject).toContain(`CN=Amazon RDS ${region} Root CA`)
        expect(certificate.ca && certificate.verify(certificate.publicKey)).toBe(true)
        expect(new Date(certificate.validTo).getUTCFullYear()).toBeGreaterThan(2060)
      }
    },
  )

  it.each(['shop.proxy-c1ab2.eu-central-1.rds.amazonaws.com', 'db.example.com', 'localhost'])(
    'leaves %s to the authorities that Node knows',
    (host) => {
      expect(certificatesFor(host, null)).toBeUndefined()
    },
  )

  it('says what to do in a region that it does not know', () => {
    expect(() => certificatesFor('shop.c1.xx-new-1.rds.amazonaws.com', null)).toThrow(
      /^This package has no certificate authority of RDS in xx-new-1\. Set DATABASE_CA_FILE /,
    )
  })

  it('takes those of a file in place of all others', async () => {
    const file = join(directory, 'ca.pem')
    await writeFile(file, '-----BEGIN CERTIFICATE-----\n')
    expect(certificatesFor('shop.c1.eu-central-1.rds.amazonaws.com', file)).toEqual([
      '-----BEGIN CERTIFICATE-----\n',
    ])
  })

  it('says what is wrong with a file', async () => {
    const file = join(directory, 'empty.pem')
    await writeFile(file, '')
    expect(() => certificatesFor('localhost', file)).toThrow(
      `Expected DATABASE_CA_FILE to be a PEM file, found no certificate in ${file}.`,
    )
    expect(() => certificatesFor('localhost', join(directory, 'gone.pem'))).toThrow(
      /^Cannot read DATABASE_CA_FILE: ENOENT/,
    )
  })
})
