import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, globSync, readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { cache } from '../local/home.ts'

const run = promisify(execFile)

/** LocalStack in a virtual environment. */
export interface Installation {
  readonly version: string
  /** The program to run it with. */
  readonly python: string
}

/**
 * Which release runs on which Python, the best first. The last that needs no account is 4.14.0, and it does not run
 * on 3.11.
 */
const releases = [
  { version: '4.14.0', python: '3.13' },
  { version: '4.8.1', python: '3.11' },
]

/**
 * Has LocalStack in the cache: installed by the first call, of exactly the versions in requirements-*.txt, and then
 * kept until that file changes.
 *
 * @param onProgress is told when it takes a minute
 * @throws when there is no Python for it
 */
export async function installLocalStack(onProgress: (text: string) => void): Promise<Installation> {
  for (const { version, python: series } of releases) {
    const python = await findPython(series)
    if (python === undefined) continue
    return { version, python: await install(version, python, onProgress) }
  }
  const series = releases.map(({ python }) => python).join(' or ')
  throw new Error(
    `Cannot run LocalStack here: it needs Docker, or Python ${series} (as python3.x on the PATH, or from pyenv); found neither.`,
  )
}

async function install(version: string, python: string, onProgress: (text: string) => void): Promise<string> {
  const requirements = join(import.meta.dirname, `requirements-${version}.txt`)
  const { stdout } = await run(python, ['--version'])
  const hash = createHash('sha256').update(stdout).update(readFileSync(requirements)).digest('hex')
  const directory = join(cache, `localstack-${version}-${hash.slice(0, 12)}`)
  const installed = join(directory, 'bin/python')
  if (existsSync(installed)) return installed

  onProgress(`Installing LocalStack ${version} (a minute, once)`)
  await mkdir(cache, { recursive: true })
  // Made beside its place and moved there whole: a run that is ended here leaves nothing half made.
  const unfinished = await mkdtemp(join(cache, 'localstack-'))
  try {
    await run(python, ['-m', 'venv', unfinished])
    // Nothing but what the file names: it is complete.
    const pip = ['-m', 'pip', 'install', '--no-deps', '--quiet', '--disable-pip-version-check']
    await run(join(unfinished, 'bin/python'), [...pip, '--requirement', requirements], {
      maxBuffer: 10_000_000,
    })
    await rename(unfinished, directory).catch((error: unknown) => {
      if (!existsSync(installed)) throw error // another run was quicker
    })
  } finally {
    await rm(unfinished, { recursive: true, force: true })
  }
  return installed
}

/** A Python of a series, e.g. 3.13; undefined when there is none. */
async function findPython(series: string): Promise<string | undefined> {
  const pyenv = process.env['PYENV_ROOT'] || join(homedir(), '.pyenv')
  const candidates = [
    `python${series}`,
    ...globSync(join(pyenv, `versions/${series}.*/bin/python`))
      .sort()
      .reverse(),
  ]
  for (const candidate of candidates) {
    // pyenv's own python3.13 is there also when no 3.13 is chosen, and fails.
    const isIt = await run(candidate, ['-c', 'import sys, venv; print("%d.%d" % sys.version_info[:2])']).then(
      ({ stdout }) => stdout.trim() === series,
      () => false,
    )
    if (isIt) return candidate
  }
  return undefined
}
