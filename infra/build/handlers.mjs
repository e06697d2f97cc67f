// Handlers are found by the build: every module of functions/handlers/ is one. They are checked one by one and then
// become the module `loopless:handlers`, so that nothing has to look for files at run time.

import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { basename, extname, join, relative, resolve } from 'node:path'
import { Worker } from 'node:worker_threads'
import { build } from 'esbuild'

const root = resolve(import.meta.dirname, '../..')
const library = join(root, 'src/index.ts')
const loader = new URL('./load-handler.mjs', import.meta.url)
const loadTimeoutMs = 10_000
/** Handlers that are bundled and loaded at once. */
const concurrency = 8

/**
 * A handler module: `key` is its file name without the ending, the name of a handler that gives itself none.
 *
 * @typedef {{ path: string, key: string }} HandlerFile
 */

/** One or more modules are not handlers; the message has a line for each, with its path and why. */
export class HandlerModuleError extends Error {
  /** @override */
  name = 'HandlerModuleError'

  /** @param {{ path: string, problem: string }[]} problems */
  constructor(problems) {
    const lines = problems.map(({ path, problem }) => `  ${relative(root, path)}: ${problem}`)
    super(
      `Expected each module of the handlers' folder to export default defineHandler(…):\n${lines.join('\n')}`,
    )
  }
}

/**
 * Finds the handler modules of a folder and checks each: it bundles, loads, has a handler as its default export, and
 * a name that no other has.
 *
 * @param {string} folder
 * @param {import('esbuild').BuildOptions} options how the bundles are built that they will be part of
 * @returns {Promise<HandlerFile[]>} in the order of their names
 * @throws {HandlerModuleError}
 */
export async function checkHandlers(folder, options) {
  const files = await findHandlers(folder)
  const scratch = join(root, '.esbuild')
  await mkdir(scratch, { recursive: true })
  const directory = await mkdtemp(join(scratch, 'check-'))
  try {
    const waiting = files.map((file, index) => ({ ...file, bundle: join(directory, `${index}.cjs`) }))
    /** @type {({ path: string } & ({ name: string } | { problem: string }))[]} */
    const checked = []
    const checkNext = async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
        checked.push({ path: next.path, ...(await checkHandler(next, options)) })
      }
    }
    await Promise.all(Array.from({ length: concurrency }, checkNext))
    refuse(checked)
    return files
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

/**
 * The module `loopless:handlers`: the handlers of these files as a set.
 *
 * @param {HandlerFile[]} files
 * @returns {import('esbuild').Plugin}
 */
export function handlersModule(files) {
  const lines = [
    `import { defineHandlers } from ${JSON.stringify(library)}`,
    ...files.map(({ path }, index) => `import handler${index} from ${JSON.stringify(path)}`),
    `export const handlers = defineHandlers([`,
    ...files.map(({ key }, index) => `  [${JSON.stringify(key)}, handler${index}],`),
    `])`,
  ]
  return {
    name: 'loopless-handlers',
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^loopless:handlers$/ }, ({ path }) => ({ path, namespace: 'loopless' }))
      onLoad({ filter: /^loopless:handlers$/, namespace: 'loopless' }, () => ({
        contents: lines.join('\n'),
        resolveDir: root,
      }))
    },
  }
}

/**
 * @param {string} folder
 * @returns {Promise<HandlerFile[]>}
 */
async function findHandlers(folder) {
  const entries = await readdir(folder, { withFileTypes: true })
  const names = entries
    .filter((entry) => entry.isFile() && /\.[cm]?[jt]sx?$/.test(entry.name))
    .map((entry) => entry.name)
    .filter((name) => !/\.(test|d)\.[cm]?[jt]sx?$/.test(name))
    .sort()
  const others = names.filter((name) => !name.endsWith('.ts'))
  if (others.length > 0) {
    const problem = 'handlers are .ts files; put other modules into a folder below this one'
    throw new HandlerModuleError(others.map((name) => ({ path: join(folder, name), problem })))
  }
  return names.map((name) => ({ path: resolve(folder, name), key: basename(name, extname(name)) }))
}

/**
 * @param {HandlerFile & { bundle: string }} file
 * @param {import('esbuild').BuildOptions} options
 * @returns {Promise<{ name: string } | { problem: string }>}
 */
async function checkHandler({ path, key, bundle }, options) {
  const contents = [
    `import * as module from ${JSON.stringify(path)}`,
    `import { defineHandlers, isHandler } from ${JSON.stringify(library)}`,
    `export { module, defineHandlers, isHandler }`,
  ]
  try {
    const stdin = { contents: contents.join('\n'), resolveDir: root, sourcefile: `check of ${key}` }
    await build({ ...options, stdin, outfile: bundle, logLevel: 'silent' })
  } catch (error) {
    return { problem: `it cannot be bundled: ${buildErrors(error)}` }
  }
  return load(bundle, key)
}

/**
 * @param {string} bundle
 * @param {string} key
 * @returns {Promise<{ name: string } | { problem: string }>}
 */
async function load(bundle, key) {
  const worker = new Worker(loader, { workerData: { bundle, key } })
  /** @type {NodeJS.Timeout | undefined} */
  let timer
  try {
    return await new Promise((resolve) => {
      worker.once('message', resolve)
      worker.once('error', (error) => resolve({ problem: `loading it threw ${error}` }))
      worker.once('exit', () => resolve({ problem: 'loading it ended the process' }))
      timer = setTimeout(
        () => resolve({ problem: `loading it took more than ${loadTimeoutMs / 1000} s` }),
        loadTimeoutMs,
      )
    })
  } finally {
    clearTimeout(timer)
    await worker.terminate()
  }
}

/** @param {({ path: string } & ({ name: string } | { problem: string }))[]} checked */
function refuse(checked) {
  const inOrder = checked.toSorted((a, b) => (a.path < b.path ? -1 : 1))
  /** @type {Map<string, string>} */
  const pathOf = new Map()
  const problems = inOrder.flatMap((found) => {
    if ('problem' in found) return [found]
    const { path, name } = found
    const other = pathOf.get(name)
    if (other === undefined) {
      pathOf.set(name, path)
      return []
    }
    return [{ path, problem: `its name "${name}" is that of ${relative(root, other)} too` }]
  })
  if (problems.length > 0) throw new HandlerModuleError(problems)
}

/** @param {unknown} error */
function buildErrors(error) {
  const { errors = [] } = /** @type {Partial<import('esbuild').BuildFailure>} */ (error)
  if (errors.length === 0) return String(error)
  return errors
    .map(({ text, location }) => (location ? `${text} (${location.file}:${location.line})` : text))
    .join('; ')
}
