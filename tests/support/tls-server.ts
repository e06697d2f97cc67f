import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, mkdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { PostgresServer } from '../../infra/local/postgres-server.ts'
import { startServer } from './server.ts'
import { withSession } from './session.ts'

/** A server that takes TLS, with a certificate for `localhost` of an authority of its own. */
export interface TlsServer extends PostgresServer {
  /** The authority's certificate, a PEM file. */
  readonly caFile: string
  /** The certificate of an authority that has nothing to do with it. */
  readonly otherCaFile: string
  /** Has clients of some users prove who they are by password, `lines` being more of pg_hba.conf. */
  require(lines: string[]): Promise<void>
}

/** Starts one; `destroy()` it at the end. Users need no password until one is required. */
export async function startTlsServer(): Promise<TlsServer> {
  const server = await startServer()
  const directory = `${server.dataDirectory}/tls`
  const { uid, gid } = statSync(server.dataDirectory)
  mkdirSync(directory)
  writeFileSync(join(directory, 'openssl.cnf'), configuration)
  makeAuthority(directory, 'ca')
  makeAuthority(directory, 'other-ca')
  makeCertificate(directory)
  const key = join(directory, 'server.key')
  chmodSync(key, 0o600)
  for (const path of [directory, key, join(directory, 'server.pem')]) chownSync(path, uid, gid)
  const reload = async (statements: string[]): Promise<void> => {
    const loadedAt = await withSession(server.url, async (sql) => {
      for (const statement of statements) await sql.unsafe(statement)
      const [row] = await sql`select pg_conf_load_time()::text as at, pg_reload_conf()`
      return row?.['at']
    })
    // a session begins with what the server had when it began
    const isLoaded = (): Promise<boolean> =>
      withSession(server.url, async (sql) => {
        const [row] = await sql`select pg_conf_load_time()::text as at`
        return row?.['at'] !== loadedAt
      })
    while (!(await isLoaded()));
  }
  await reload([
    `alter system set ssl_cert_file = '${join(directory, 'server.pem')}'`,
    `alter system set ssl_key_file = '${key}'`,
    `alter system set ssl = on`,
  ])
  return {
    ...server,
    caFile: join(directory, 'ca.pem'),
    otherCaFile: join(directory, 'other-ca.pem'),
    async require(lines) {
      const all = [...lines, 'host all all all trust', '']
      writeFileSync(join(server.dataDirectory, 'pg_hba.conf'), all.join('\n'))
      await reload([])
    },
  }
}

const configuration = `
[req]
distinguished_name = name
prompt = no
[name]
CN = Loopless test
[authority]
basicConstraints = critical, CA:TRUE
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost
`

const newKey = [
  '-newkey',
  'ec',
  '-pkeyopt',
  'ec_paramgen_curve:prime256v1',
  '-nodes',
  '-config',
  'openssl.cnf',
]

function makeAuthority(cwd: string, name: string): void {
  const files = ['-keyout', `${name}.key`, '-out', `${name}.pem`]
  openssl(
    cwd,
    'req',
    '-x509',
    ...newKey,
    ...files,
    '-extensions',
    'authority',
    '-subj',
    `/CN=${name}`,
    '-days',
    '30',
  )
}

function makeCertificate(cwd: string): void {
  openssl(cwd, 'req', ...newKey, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=localhost')
  const authority = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-set_serial', '1']
  const extensions = ['-extfile', 'openssl.cnf', '-extensions', 'server']
  openssl(
    cwd,
    'x509',
    '-req',
    '-in',
    'server.csr',
    ...authority,
    ...extensions,
    '-out',
    'server.pem',
    '-days',
    '30',
  )
}

function openssl(cwd: string, ...args: string[]): void {
  execFileSync('openssl', args, { cwd, stdio: ['ignore', 'ignore', 'pipe'] })
}
