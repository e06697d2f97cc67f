// What is bundled, and how. `npm run build` runs this file and then emits the types.

import { readFile, rm } from 'node:fs/promises'
import { build } from 'esbuild'
import { mendedMarker } from './infra/local/mend-driver.mjs'

/**
 * What every bundle has in common.
 *
 * @satisfies {import('esbuild').BuildOptions}
 */
const shared = {
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
 */
export async function buildPackage() {
  await rm('dist', { recursive: true, force: true })
  await build({
    ...shared,
    entryPoints: { index: 'src/index.ts', cli: 'src/cli/main.ts' },
    outdir: 'dist',
    splitting: true,
    chunkNames: 'chunk-[hash]',
  })
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

if (import.meta.main) await buildPackage()
