// What is bundled, and how. `npm run build` runs this file and then emits the types; the serverless plugin in
// infra/serverless/ builds the functions before it packages or runs them; `--check` checks the handlers only.

import { randomUUID } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { build } from 'esbuild'
import { awsSdk } from './infra/build/aws-sdk.mjs'
import { checkHandlers, HandlerModuleError, handlersModule } from './infra/build/handlers.mjs'
import { certificatesModule } from './infra/build/rds-certificates.mjs'
import { schemaModule } from './infra/build/schema.mjs'
import { mendedMarker } from './infra/local/mend-driver.mjs'

const root = import.meta.dirname

/**
 * What every bundle has in common.
 *
 * @satisfies {import('esbuild').BuildOptions}
 */
const shared = {
  absWorkingDir: root,
  write: false,
  bundle: true,
  platform: 'node',
  target: 'node22',
  format: 'esm',
  sourcemap: true,
  sourcesContent: false,
  legalComments: 'inline',
  logLevel: 'warning',
  plugins: [mendedDriver()],
}

/**
 * Builds the package into dist/: the library and the CLI, with what they share in chunks beside them. All files
 * lie in dist/ itself, so that what is found relative to a source file of the bundle has one place.
 *
 * @returns the paths of the files
 */
export async function buildPackage() {
  const result = await build({
    ...shared,
    entryPoints: { index: 'src/index.ts', cli: 'src/cli/main.ts' },
    outdir: 'dist',
    splitting: true,
    chunkNames: 'chunk-[hash]',
    sourcesContent: true, // the sources themselves are not in the package
  })
  return write(result)
}

/**
 * A bundle that Lambda loads. CommonJS with its own ending: it needs no package.json beside it, is what
 * `serverless invoke local`, serverless-offline and Lambda all load, and may contain packages that call require.
 *
 * @satisfies {import('esbuild').BuildOptions}
 */
export const forLambda = {
  ...shared,
  target: 'node24',
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
  minify: true,
  mainFields: ['module', 'main'], // modules, not the CommonJS that most packages offer first: only what is used is taken
  keepNames: true, // errors are recorded by the name of their class
  define: { 'import.meta.url': 'importMetaUrl' }, // CommonJS has none
  banner: { js: `const importMetaUrl = require('node:url').pathToFileURL(__filename).href` },
  legalComments: 'none',
}

/**
 * Builds a file for each function into dist/functions/, and handlers.js, the handler set for the CLI. Each handler is
 * checked first.
 *
 * @param {{ handlers?: string, outdir?: string }} [folders] for tests; relative to the project
 * @throws {HandlerModuleError}
 */
export async function buildFunctions({ handlers = 'functions/handlers', outdir = 'dist/functions' } = {}) {
  const files = await checkHandlers(join(root, handlers), { ...forLambda, write: true })
  const found = handlersModule(files)
  const results = await Promise.all([
    build({
      ...forLambda,
      entryPoints: await functionFiles(),
      outdir,
      plugins: [...shared.plugins, found, schemaModule(), certificatesModule(), awsSdk()],
    }),
    build({
      ...shared,
      stdin: { contents: `export { handlers } from 'loopless:handlers'`, resolveDir: root },
      outfile: join(outdir, 'handlers.js'),
      packages: 'external',
      plugins: [found, sharedLibrary(outdir)],
    }),
  ])
  for (const result of results) await write(result)
}

/** The modules at the top of functions/ but the definitions of events. */
async function functionFiles() {
  const names = await readdir(join(root, 'functions'))
  return names
    .filter((name) => name.endsWith('.ts') && !/\.(test|d)\.ts$/.test(name) && name !== 'events.ts')
    .map((name) => `functions/${name}`)
}

/**
 * Makes a bundle import the library from the package's, so that the CLI and the handlers that it loads have the same
 * error classes.
 *
 * @param {string} outdir where the bundle will be
 * @returns {import('esbuild').Plugin}
 */
function sharedLibrary(outdir) {
  const library = join(root, 'src/index.ts')
  const path = relative(outdir, 'dist/index.js').replaceAll('\\', '/')
  return {
    name: 'shared-library',
    setup({ onResolve, resolve }) {
      onResolve({ filter: /[\\/]index\.ts$/ }, async ({ path: from, pluginData, ...options }) => {
        if (pluginData === 'resolving') return undefined
        const resolved = await resolve(from, { ...options, pluginData: 'resolving' })
        return resolved.path === library ? { path, external: true } : undefined
      })
    },
  }
}

/**
 * Fails a build that would take up a postgres.js which is not mended, as after `npm ci --ignore-scripts`.
 *
 * @returns {import('esbuild').Plugin}
 */
function mendedDriver() {
  return {
    name: 'mended-driver',
    setup({ onLoad }) {
      onLoad({ filter: /node_modules[\\/]postgres[\\/].*[\\/]connection\.js$/ }, async ({ path }) => {
        const contents = await readFile(path, 'utf8')
        if (contents.includes(mendedMarker)) return { contents }
        return {
          errors: [{ text: 'postgres.js is not mended: run npm run prepare', location: { file: path } }],
        }
      })
    },
  }
}

/**
 * Writes each file whole under another name first: an emulator, a CLI or a test may load it at any moment. One that has
 * these contents already stays untouched: whoever packages it just then would find it changed under its hands.
 *
 * @param {import('esbuild').BuildResult} result
 * @returns {Promise<string[]>} the paths
 */
async function write({ outputFiles = [] }) {
  const drafts = join(root, '.esbuild')
  await mkdir(drafts, { recursive: true })
  for (const { path, contents } of outputFiles) {
    const before = await readFile(path).catch(() => null)
    if (before?.equals(contents)) continue
    await mkdir(dirname(path), { recursive: true })
    const draft = join(drafts, randomUUID())
    const isCommand = contents[0] === 0x23 && contents[1] === 0x21 // #!
    await writeFile(draft, contents, { mode: isCommand ? 0o755 : 0o644 })
    await rename(draft, path)
  }
  return outputFiles.map(({ path }) => path)
}

/**
 * Removes what earlier builds of the package left in dist/.
 *
 * @param {string[]} built
 */
async function removeStale(built) {
  const dist = join(root, 'dist')
  const names = await readdir(dist)
  const stale = names.filter((name) => name !== 'functions' && !built.includes(join(dist, name)))
  for (const name of stale) await rm(join(dist, name), { recursive: true })
}

async function main() {
  if (process.argv.includes('--check')) {
    await checkHandlers(join(root, 'functions/handlers'), { ...forLambda, write: true })
    return
  }
  await removeStale(await buildPackage())
  await buildFunctions()
}

if (import.meta.main) {
  await main().catch((error) => {
    if (!(error instanceof HandlerModuleError)) throw error
    console.error(error.message)
    process.exitCode = 1
  })
}
