import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freePort, type PostgresServer, postgresServer } from '../../infra/local/postgres-server.ts'

/** How a test's own server differs from the usual one, which writes nothing to the disk at once. */
export interface StartServerOptions {
  /** Whether commits wait for the disk. A crash of the server alone loses nothing either way. Default false. */
  fsync?: boolean
  /** Further settings of the server. Default none. */
  settings?: Record<string, string | number>
  /** Where its binaries are. Default: the embedded ones. */
  binDirectory?: string
}

/**
 * Starts a separate server, in a temporary directory and on a free port, for tests that crash, kill or restart
 * it; `destroy()` it at the end.
 */
export async function startServer(options: StartServerOptions = {}): Promise<PostgresServer> {
  const { fsync = false, settings = {}, binDirectory } = options
  // The name says which process made it: the next run removes what a killed one left (global-setup.ts).
  const directory = mkdtempSync(join(tmpdir(), `loopless-server-${process.pid}-`))
  chmodSync(directory, 0o755)
  const server = await postgresServer({
    dataDirectory: join(directory, 'data'),
    port: await freePort(),
    settings: { fsync: fsync ? 'on' : 'off', max_connections: 300, ...settings },
    ...(binDirectory && { binDirectory }),
  })
  const remove = (): void => rmSync(directory, { recursive: true, force: true, maxRetries: 5 })
  const onExit = (): void => {
    server.destroyNow()
    remove()
  }
  process.once('exit', onExit)
  const destroy = async (): Promise<void> => {
    process.off('exit', onExit)
    await server.destroy()
    remove()
  }
  await server.start().catch(async (error: unknown) => {
    await destroy()
    throw error
  })
  return { ...server, destroy }
}
