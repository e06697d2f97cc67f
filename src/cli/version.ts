import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The version of this package, from the nearest package.json above this file. */
export function readVersion(from: string = dirname(fileURLToPath(import.meta.url))): string {
  const file = join(from, 'package.json')
  if (existsSync(file)) return String(JSON.parse(readFileSync(file, 'utf8')).version)
  return dirname(from) === from ? 'unknown' : readVersion(dirname(from))
}
