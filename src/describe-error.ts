import { inspect, types } from 'node:util'
import { NonError } from './errors.ts'

/** An error as the attempt table keeps it. */
export interface ErrorDescription {
  readonly errorClass: string
  /** At most 8 KiB of characters. */
  readonly errorMessage: string
  /** With causes; at most 16 KiB of characters. Null when there is none. */
  readonly errorStack: string | null
}

const mostMessage = 8_192
const mostStack = 16_384

/** Describes whatever a handler threw; never throws itself. */
export function describeError(thrown: unknown): ErrorDescription {
  try {
    const error = isError(thrown)
      ? thrown
      : new NonError(`Thrown, and not an Error: ${inspect(thrown, { depth: 2 })}`)
    return {
      errorClass: storable(String(error.name || 'Error'), 200),
      errorMessage: storable(String(error.message), mostMessage),
      errorStack: isError(thrown) ? storable(stackOf(error), mostStack) : null,
    }
  } catch {
    return { errorClass: 'NonError', errorMessage: 'Thrown, and cannot be shown.', errorStack: null }
  }
}

function stackOf(error: Error): string {
  const seen = new Set<unknown>()
  const parts: string[] = []
  for (let one: unknown = error; one !== undefined && !seen.has(one) && seen.size < 10; ) {
    seen.add(one)
    const text = isError(one) ? (one.stack ?? `${one.name}: ${one.message}`) : inspect(one, { depth: 1 })
    parts.push(parts.length === 0 ? text : `caused by: ${text}`)
    one = isError(one) ? one.cause : undefined
  }
  return parts.join('\n')
}

/** Also for an error of another realm, such as a test runner's. */
function isError(value: unknown): value is Error {
  return value instanceof Error || types.isNativeError(value)
}

/** Postgres keeps neither U+0000 nor half of a surrogate pair in text. */
function storable(text: string, most: number): string {
  const clean = text.toWellFormed().replaceAll('\0', '\uFFFD')
  return clean.length <= most ? clean : `${clean.slice(0, most - 1).toWellFormed()}…`
}
