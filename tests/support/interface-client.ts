import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { cache } from '../../infra/local/home.ts'

const name = 'aws-lambda-ric'
const version = '4.0.2'
const integrity =
  'sha512-FE5Vskx7mYNnqAnWWJXUOsLp2VGgdsJsCoRLFTa8L4Yk0QVtArqR8q58yPA++QC1a73ZWJXBQ2AH31nIAv7NOQ=='

const run = promisify(execFile)

/**
 * Has AWS's runtime interface client, which is what loads and calls a function's handler on Lambda, in the cache.
 *
 * It is no devDependency: an npm before 11.19 would run its install scripts at every `npm ci`, which compile curl for
 * a minute and fail without cmake. Only its one bundled module is run here, with rapid-client.ts as the HTTP client.
 *
 * @returns the path of that module
 */
export async function interfaceClient(): Promise<string> {
  const directory = join(cache, `${name}-${version}`)
  const entry = join(directory, 'package/index.mjs')
  if (existsSync(entry)) return entry
  await mkdir(cache, { recursive: true })
  // Made beside its place and moved there whole: a run that is ended here leaves nothing half made.
  const unfinished = await mkdtemp(join(cache, `${name}-`))
  try {
    await run('npm', ['pack', `${name}@${version}`, '--silent', '--pack-destination', unfinished])
    const archive = join(unfinished, `${name}-${version}.tgz`)
    await check(archive)
    await run('tar', ['-xzf', archive, '-C', unfinished, 'package/index.mjs', 'package/package.json'])
    await rm(archive)
    await rename(unfinished, directory).catch((error: unknown) => {
      if (!existsSync(entry)) throw error // another run was quicker
    })
  } finally {
    await rm(unfinished, { recursive: true, force: true })
  }
  return entry
}

async function check(archive: string): Promise<void> {
  const got = `sha512-${createHash('sha512')
    .update(await readFile(archive))
    .digest('base64')}`
  if (got !== integrity) throw new Error(`Expected ${name}@${version} to be ${integrity}, got ${got}.`)
}
