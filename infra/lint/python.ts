import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { home } from '../local/home.ts'

/**
 * Makes a virtual environment with what a requirements file pins, in `home`; once: a stamp says what is in it.
 *
 * @param name of its folder
 * @param requirementsFile with a hash for each package
 * @returns the folder of its programs
 * @throws when this machine has no Python that can
 */
export function pythonPrograms(name: string, requirementsFile: string): string {
  const folder = join(home, name)
  const stampFile = join(folder, 'stamp')
  const programs = join(folder, 'bin')
  const python = findPython()
  const stamp = createHash('sha256')
    .update(readFileSync(requirementsFile))
    .update(python.version)
    .digest('hex')
  if (existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stamp) return programs
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(dirname(folder), { recursive: true })
  execFileSync(python.path, ['-m', 'venv', folder], { stdio: 'inherit' })
  const install = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps']
  execFileSync(join(programs, 'python'), [...install, '--require-hashes', '-r', requirementsFile], {
    stdio: 'inherit',
  })
  writeFileSync(stampFile, stamp)
  return programs
}

/** The first Python of PATH that is new enough and can make virtual environments. */
function findPython(): { path: string; version: string } {
  const script = 'import sys, venv, ensurepip; print(sys.version); sys.exit(sys.version_info < (3, 10))'
  for (const path of ['python3', 'python3.13', 'python3.12', 'python3.11', 'python3.10']) {
    const { status, stdout } = spawnSync(path, ['-c', script], { encoding: 'utf8' })
    if (status === 0) return { path, version: stdout }
  }
  throw new Error(
    'Expected a Python of 3.10 or newer with venv on the PATH. Install one, for example with `apt-get install python3-venv`.',
  )
}
