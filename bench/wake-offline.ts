import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildFunctions, buildPackage } from '../esbuild.config.mjs'
import { handledLog } from '../infra/local/handled.ts'
import { probeLatency } from '../infra/local/latency.ts'
import { connect } from '../src/index.ts'
import type { Bench, Figure } from './figure.ts'

const commits = 100

/** From a commit to its handler by the way that events take under `npm start`: notification, bridge, Invoke, function. */
export async function throughOffline({ server }: Bench): Promise<Figure[]> {
  // before what reads it is loaded: a running `npm start` is another's
  const home = await mkdtemp(join(tmpdir(), 'loopless-bench-home-'))
  process.env['LOOPLESS_HOME'] = home
  const { builtHandlers, prepareDatabase } = await import('../infra/local/postgres.ts')
  const { startOffline } = await import('../infra/local/offline.ts')
  const { prepareWaking, startWaking } = await import('../infra/local/waking.ts')

  await buildPackage()
  await buildFunctions()
  const url = await server.createDatabase('bench_offline')
  const sql = connect(url, { max: 2 })
  await prepareDatabase(sql, await builtHandlers())
  await prepareWaking(sql)
  const handled = handledLog()
  const environment = { DATABASE_URL: url, GITHUB_WEBHOOK_SECRET: 'bench' }
  const offline = await startOffline(environment, (line) => handled.hear(line))
  await offline.ready()
  const waking = await startWaking(url, offline, (error) => console.error(error))
  await probeLatency(sql, handled, 5) // warm
  const latency = await probeLatency(sql, handled, commits)
  await waking.stop()
  await offline.stop()
  await sql.end({ timeout: 1 })
  await rm(home, { recursive: true, force: true })
  const one = { unit: 'ms', peer: null, ratio: null, target: null } as const
  return [
    {
      what: `idle bus, through serverless-offline, median of ${latency?.events ?? 0}`,
      value: latency?.p50 ?? Number.NaN,
      ...one,
    },
    { what: 'the same, 99th percentile', value: latency?.p99 ?? Number.NaN, ...one },
  ]
}
