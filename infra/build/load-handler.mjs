// Loads one bundled handler in a thread of its own, so that whatever its module does while it loads (throw, exit,
// start a timer) ends here, and says whether it is a handler. See handlers.mjs.

import { createRequire } from 'node:module'
import { parentPort, workerData } from 'node:worker_threads'

const { bundle, key } = workerData

try {
  const { module, isHandler, defineHandlers } = createRequire(import.meta.url)(bundle)
  parentPort?.postMessage(nameOf(module, isHandler, defineHandlers))
} catch (error) {
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error)
  parentPort?.postMessage({ problem: `loading it threw ${text}` })
}

/**
 * @param {{ default?: unknown }} module
 * @param {typeof import('../../src/index.ts').isHandler} isHandler
 * @param {typeof import('../../src/index.ts').defineHandlers} defineHandlers
 * @returns {{ name: string } | { problem: string }}
 */
function nameOf(module, isHandler, defineHandlers) {
  const { default: handler } = module
  if (handler === undefined) return { problem: 'it has no default export' }
  if (!isHandler(handler)) return { problem: `its default export is ${kindOf(handler)}, not a handler` }
  const [named] = defineHandlers([[key, handler]]).handlers
  return { name: named?.name ?? key }
}

/** @param {unknown} value */
function kindOf(value) {
  if (value === null) return 'null'
  return typeof value === 'object' ? 'an object' : `a ${typeof value}`
}
