import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { join, relative } from 'node:path'
import { build } from 'esbuild'
import { buildFunctions, forLambda } from '../esbuild.config.mjs'
import { type Benchmark, type Figure, median } from './figure.ts'

const root = join(import.meta.dirname, '..')
const poller = `export { connect, defineHandlers, drain } from './src/index.ts'`
const sdk = `export { InvokeCommand, LambdaClient } from '@aws-sdk/client-lambda'`

/** What a poller weighs, bundled as the functions are, and what loading it costs a new process; then the functions themselves. */
export const bundling: Benchmark = async function* ({ rounds }) {
  mkdirSync(join(root, '.esbuild'), { recursive: true })
  const directory = mkdtempSync(join(root, '.esbuild', 'bench-'))
  const bundle = async (name: string, contents: string): Promise<string> => {
    const outfile = join(directory, name)
    await build({
      ...forLambda,
      sourcemap: false,
      write: true,
      stdin: { contents, resolveDir: root },
      outfile,
    })
    return outfile
  }
  try {
    const alone = await bundle('poller.cjs', poller)
    const withSdk = await bundle('sdk.cjs', `${poller}\n${sdk}`)
    await buildFunctions({ outdir: relative(root, directory) })
    yield* measure('a poller', alone, 100, rounds)
    yield* measure('a poller with the AWS SDK', withSdk, 500, rounds)
    const poll = join(directory, 'poll.cjs')
    yield* measure('the function poll: sign-ins, authorities, handlers', poll, 500, rounds)
    yield* measure('the function wake: these, and Invoke', join(directory, 'wake.cjs'), 500, rounds)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

/** Settings that a function reads as it is loaded; it connects with its first query, which is never sent. */
const environment = { ...process.env, DATABASE_URL: 'postgres://nobody@127.0.0.1:1/nothing' }

function measure(what: string, file: string, mostKb: number, rounds: number): Figure[] {
  const load = `const t = performance.now(); require(${JSON.stringify(file)}); console.log(performance.now() - t); process.exit()`
  const times = Array.from({ length: Math.max(5, rounds) }, () =>
    Number(execFileSync(process.execPath, ['-e', load], { encoding: 'utf8', env: environment })),
  )
  const alone = { peer: null, ratio: null }
  return [
    {
      what: `bundle of ${what}`,
      value: statSync(file).size / 1000,
      unit: 'KB',
      ...alone,
      target: { atMost: mostKb },
    },
    { what: `cold import of ${what}`, value: median(times), unit: 'ms', ...alone, target: { atMost: 150 } },
  ]
}
