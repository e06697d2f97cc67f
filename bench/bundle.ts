import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build } from 'esbuild'
import { forLambda } from '../esbuild.config.mjs'
import { type Benchmark, type Figure, median } from './figure.ts'

const root = join(import.meta.dirname, '..')
const poller = `export { connect, defineHandlers, drain } from './src/index.ts'`
const sdk = `export { InvokeCommand, LambdaClient } from '@aws-sdk/client-lambda'`

/** What a poller weighs, bundled as the functions are, and what loading it costs a new process. */
export const bundling: Benchmark = async ({ rounds }) => {
  const directory = mkdtempSync(join(tmpdir(), 'loopless-bundle-'))
  try {
    return [
      ...(await measure('poller', poller, join(directory, 'poller.cjs'), 100, rounds)),
      ...(await measure(
        'poller with the AWS SDK',
        `${poller}\n${sdk}`,
        join(directory, 'sdk.cjs'),
        500,
        rounds,
      )),
    ]
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

async function measure(
  what: string,
  contents: string,
  outfile: string,
  mostKb: number,
  rounds: number,
): Promise<Figure[]> {
  await build({ ...forLambda, sourcemap: false, write: true, stdin: { contents, resolveDir: root }, outfile })
  const load = `const t = performance.now(); require(${JSON.stringify(outfile)}); console.log(performance.now() - t)`
  const times = Array.from({ length: Math.max(5, rounds) }, () =>
    Number(execFileSync(process.execPath, ['-e', load], { encoding: 'utf8' })),
  )
  const alone = { peer: null, ratio: null }
  return [
    {
      what: `bundle of a ${what}`,
      value: statSync(outfile).size / 1000,
      unit: 'KB',
      ...alone,
      target: { atMost: mostKb },
    },
    { what: `cold import of a ${what}`, value: median(times), unit: 'ms', ...alone, target: { atMost: 150 } },
  ]
}
