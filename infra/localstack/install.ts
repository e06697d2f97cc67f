import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { cache } from '../local/home.ts'

const run = promisify(execFile)

/** The last release that needs no account. */
export const version = '4.14.0'
/** The only one that it runs on, whatever its metadata says. */
const pythonSeries = '3.13'

/**
 * Has LocalStack in the cache: installed by the first call, of exactly what requirements.txt names, and then kept until
 * that file changes.
 *
 * @param onProgress is told when it takes a minute
 * @returns the Python to run it with
 * @throws when there is no Python for it
 */
export async function installLocalStack(onProgress: (text: string) => void): Promise<string> {
  const python = await findPython()
  const requirements = join(import.meta.dirname, 'requirements.txt')
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
    const pip = [
      '-m',
      'pip',
      'install',
      '--no-deps',
      '--require-hashes',
      '--quiet',
      '--disable-pip-version-check',
    ]
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

async function findPython(): Promise<string> {
  const pyenv = join(process.env['PYENV_ROOT'] || join(homedir(), '.pyenv'), 'versions')
  const versions = existsSync(pyenv) ? readdirSync(pyenv) : []
  const ofPyenv = versions.filter((name) => name.startsWith(`${pythonSeries}.`))
  const candidates = [`python${pythonSeries}`, ...ofPyenv.map((name) => join(pyenv, name, 'bin/python'))]
  for (const candidate of candidates) if (await isPython(candidate)) return candidate
  throw new Error(
    `Cannot run LocalStack here: it needs Docker (on Linux), or Python ${pythonSeries}, on the PATH or from pyenv; found neither.`,
  )
}

/** pyenv's own python3.13 is there also when no 3.13 is chosen, and fails. */
async function isPython(program: string): Promise<boolean> {
  const script = 'import sys, venv; print("%d.%d" % sys.version_info[:2])'
  return run(program, ['-c', script]).then(
    ({ stdout }) => stdout.trim() === pythonSeries,
    () => false,
  )
}
