import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { publint } from 'publint'
import { formatMessage } from 'publint/utils'
import { afterAll, beforeAll, expect, test } from 'vitest'
import manifest from '../package.json' with { type: 'json' }

interface SourceMap {
  readonly sources: ReadonlyArray<string>
  readonly sourcesContent?: ReadonlyArray<string | null>
}

const root = fileURLToPath(new URL('..', import.meta.url))

let project: string
beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), 'loopless-package-'))
  await run(root, 'npm', ['run', 'build'])
  const packed = await run(root, 'npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', project])
  const [{ filename }] = JSON.parse(packed) as [{ filename: string }]
  await writeFile(join(project, 'package.json'), '{ "private": true, "type": "module" }')
  const options = ['--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund']
  await run(project, 'npm', ['install', ...options, `./${filename}`])
}, 120_000)
afterAll(() => rm(project, { recursive: true, force: true }))

test('imports from an empty project', async () => {
  const script = "import * as loopless from 'loopless'; console.log(Object.keys(loopless).join())"
  const names = await run(project, process.execPath, ['--input-type=module', '--eval', script])
  expect(names.split(',')).toEqual(expect.arrayContaining(['defineEvent', 'defineHandler', 'publish']))
})

test('runs its command from an empty project', async () => {
  expect(await run(project, process.execPath, ['node_modules/.bin/loopless', '--version'])).toBe(
    manifest.version,
  )
})

test('carries its types', async () => {
  // A type that cannot be found would be `any`, to which a number can be assigned.
  const use = `import { publish } from 'loopless'
export const used: typeof publish = publish
// @ts-expect-error
export const misused: typeof publish = 1
`
  await writeFile(join(project, 'use.ts'), use)
  const tsc = fileURLToPath(import.meta.resolve('typescript/bin/tsc'))
  const options = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'nodenext', '--target', 'es2024']
  expect(await run(project, process.execPath, [tsc, ...options, 'use.ts'])).toBe('')
})

test('brings along only what its modules or types import: the rest is in the bundle', async () => {
  const dist = join(project, 'node_modules/loopless/dist')
  const files = (await readdir(dist, { recursive: true })).filter((name) => /\.(js|d\.ts)$/.test(name))
  const texts = await Promise.all(files.map((name) => readFile(join(dist, name), 'utf8')))
  const isImported = (name: string): boolean =>
    texts.some((text) => new RegExp(`\\b(from|import) *['"]${name}['"]`).test(text))
  expect(Object.keys(manifest.dependencies).filter((name) => !isImported(name))).toEqual([])
})

test('maps its modules to sources that it carries', async () => {
  const dist = join(project, 'node_modules/loopless/dist')
  const maps = (await readdir(dist)).filter((name) => name.endsWith('.js.map'))
  expect(maps).toContain('index.js.map')
  for (const name of maps) {
    const { sources, sourcesContent } = JSON.parse(await readFile(join(dist, name), 'utf8')) as SourceMap
    expect(
      sourcesContent?.filter((text) => text),
      name,
    ).toHaveLength(sources.length)
  }
})

test('is in order for publint', async () => {
  const { messages, pkg } = await publint({
    pkgDir: join(project, 'node_modules/loopless'),
    strict: true,
    pack: false,
  })
  expect(messages.map((message) => formatMessage(message, pkg))).toEqual([])
})

/** Runs a program and returns what it printed. */
async function run(cwd: string, program: string, args: string[]): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, args, { cwd, maxBuffer: 10_000_000 })
    return stdout.trim()
  } catch (error) {
    // tsc says what is wrong on its standard output, which the error's message leaves out.
    throw new Error(`${program} ${args.join(' ')} failed: ${(error as { stdout?: string }).stdout}`, {
      cause: error,
    })
  }
}
