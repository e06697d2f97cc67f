import { createHash } from 'node:crypto'
import { InvalidOptionError } from './errors.ts'
import { type Handler, isHandler, isHandlerName, matches } from './handler.ts'

/** A handler with the name that deliveries refer to. */
export interface NamedHandler extends Handler {
  readonly name: string
}

/** The handlers of a deployment. */
export interface HandlerSet {
  readonly handlers: ReadonlyArray<NamedHandler>
  /** SHA-256 over names and patterns; what `loopless register` records and every claim compares. */
  readonly hash: string
  /** The handlers of an event, in the order of the set; empty when nobody handles it. */
  route(eventName: string): ReadonlyArray<NamedHandler>
  /** The handler of this name, if it is in the set. */
  find(name: string): NamedHandler | undefined
}

/**
 * Gathers handlers into a set: `{ name: handler }`, or pairs of name and handler. A handler's own `name` option wins.
 * @throws InvalidOptionError for something that is not a handler, and for two of the same name
 */
export function defineHandlers(
  handlers: Readonly<Record<string, Handler>> | ReadonlyArray<readonly [string, Handler]>,
): HandlerSet {
  const pairs = Array.isArray(handlers)
    ? (handlers as ReadonlyArray<readonly [string, Handler]>)
    : Object.entries(handlers)
  const byName = new Map<string, NamedHandler>()
  for (const [key, handler] of pairs) {
    if (!isHandler(handler))
      throw new InvalidOptionError(
        `Expected "${key}" to be a handler made by defineHandler, got ${typeof handler}.`,
      )
    const name = handler.name ?? key
    if (!isHandlerName(name))
      throw new InvalidOptionError(
        `Expected a handler name of 1–200 letters, digits, "_", "-" or ".", got "${name}".`,
      )
    if (byName.has(name))
      throw new InvalidOptionError(
        `Two handlers are named "${name}": rename one, or give it the option "name".`,
      )
    byName.set(name, { ...handler, name })
  }
  const named = [...byName.values()]
  const routes = new Map<string, ReadonlyArray<NamedHandler>>()
  return {
    handlers: named,
    hash: hashOf(named),
    find: (name) => byName.get(name),
    route: (eventName) => {
      let route = routes.get(eventName)
      if (route === undefined) {
        route = named.filter((handler) => matches(handler.pattern, eventName))
        if (routes.size < 10_000) routes.set(eventName, route) // names come from data: do not grow for ever
      }
      return route
    },
  }
}

/** @throws InvalidOptionError for what `defineHandlers` did not make, such as the record that it takes */
export function checkHandlerSet(given: HandlerSet): void {
  const set: Partial<HandlerSet> | null | undefined = given
  if (typeof set?.hash === 'string' && typeof set.route === 'function') return
  throw new InvalidOptionError(
    `Expected handlers to be what defineHandlers made, got ${set === null ? 'null' : typeof set}: write handlers: defineHandlers({ … }).`,
  )
}

function hashOf(handlers: ReadonlyArray<NamedHandler>): string {
  const lines = handlers.map((handler) => `${handler.name} ${handler.pattern}`).sort()
  return createHash('sha256').update(lines.join('\n')).digest('hex')
}
