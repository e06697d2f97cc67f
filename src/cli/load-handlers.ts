import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { HandlerSet } from '../handler-set.ts'
import { CommandError } from './explain-error.ts'
import { oneLine } from './plain-text.ts'

/** Where the build leaves the handlers, seen from the project's folder. */
export const builtHandlers = 'dist/functions/handlers.js'

/**
 * Loads the handlers of a built module, its export `handlers`.
 * @throws CommandError when the file is not there, fails as it loads, or exports something else
 */
export async function loadHandlers(path: string): Promise<HandlerSet> {
  const file = resolve(path)
  if (!existsSync(file)) {
    throw new CommandError(
      `No handlers at ${path}: build them first (npm run build), or say where they are with --handlers PATH.`,
    )
  }
  let module: { handlers?: unknown }
  try {
    module = await import(pathToFileURL(file).href)
  } catch (error) {
    const reason = error instanceof Error ? `${error.name}: ${error.message}` : String(error)
    throw new CommandError(`Cannot load the handlers of ${path}: ${oneLine(reason)}`, 1, { cause: error })
  }
  if (isHandlerSet(module.handlers)) return module.handlers
  throw new CommandError(
    `Expected ${path} to export "handlers", made by defineHandlers, got ${typeof module.handlers}.`,
  )
}

/** By shape: the module may hold a copy of this library. */
function isHandlerSet(value: unknown): value is HandlerSet {
  if (typeof value !== 'object' || value === null) return false
  const { handlers, hash, route } = value as Partial<HandlerSet>
  return Array.isArray(handlers) && typeof hash === 'string' && typeof route === 'function'
}
