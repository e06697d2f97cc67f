import { InvalidEventError } from './errors.ts'

/**
 * Payload → the JSON text that is stored, by the rules of JSON.stringify: what has a `toJSON` (a Date) becomes what
 * that returns; in objects undefined, functions and symbols are left out, in arrays they become null; NaN and
 * infinities become null; a Map or Set becomes `{}`. Strings keep every character, `\u0000` and lone surrogates too.
 * @throws InvalidEventError `NOT_SERIALIZABLE`: undefined, a function or a symbol as the whole payload, a bigint or
 * a cycle anywhere (the message says where), a `toJSON` or getter that throws
 */
export function serialize(eventName: string, payload: unknown): string {
  let text: string | undefined
  try {
    text = JSON.stringify(payload)
  } catch (error) {
    const obstacle = findObstacle(payload)
    const found = obstacle
      ? `found ${obstacle.what} at ${pathText(obstacle.path)}`
      : `it threw ${String(error)}`
    throw notSerializable(eventName, found, error)
  }
  // JSON.stringify is typed as if it always made a string
  if (text === undefined)
    throw notSerializable(eventName, `got ${payload === undefined ? 'undefined' : `a ${typeof payload}`}`)
  return text
}

/** `['items', 0, 'sku']` → `items[0].sku`; the payload itself → `the top level`. */
export function pathText(path: ReadonlyArray<PropertyKey>): string {
  if (path.length === 0) return 'the top level'
  return path
    .map((key, i) => (typeof key === 'number' ? `[${key}]` : `${i > 0 ? '.' : ''}${String(key)}`))
    .join('')
}

function notSerializable(eventName: string, found: string, cause?: unknown): InvalidEventError {
  return new InvalidEventError(
    'NOT_SERIALIZABLE',
    eventName,
    `Expected the payload of ${eventName} to be serializable as JSON, ${found}.`,
    { cause },
  )
}

interface Obstacle {
  readonly what: string
  readonly path: ReadonlyArray<PropertyKey>
}

/** Walks what JSON.stringify refused, as it did; null when there is nothing to see or the value is too deep to walk. */
function findObstacle(payload: unknown): Obstacle | null {
  try {
    return obstacleIn(payload, [], new Set())
  } catch {
    return null
  }
}

function obstacleIn(given: unknown, path: PropertyKey[], ancestors: Set<unknown>): Obstacle | null {
  const toJson = (given as { toJSON?: unknown } | null | undefined)?.toJSON
  const value: unknown = typeof toJson === 'function' ? toJson.call(given, String(path.at(-1) ?? '')) : given
  if (typeof value === 'bigint') return { what: 'a bigint', path }
  if (typeof value !== 'object' || value === null) return null
  if (ancestors.has(value)) return { what: 'a cycle', path }
  ancestors.add(value)
  for (const key of Object.keys(value)) {
    path.push(Array.isArray(value) ? Number(key) : key)
    const obstacle = obstacleIn((value as Record<string, unknown>)[key], path, ancestors)
    if (obstacle) return obstacle
    path.pop()
  }
  ancestors.delete(value)
  return null
}
