import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { findProcess } from './processes.ts'

/** The project's own folder. */
export const project: string = resolve(import.meta.dirname, '../..')

/** Where what runs on this machine keeps its data and logs: LOOPLESS_HOME, by default `.loopless` in the project. */
export const home: string = resolve(project, process.env['LOOPLESS_HOME'] || '.loopless')

/** What was installed for the lanes and need not be installed again: LOOPLESS_CACHE, by default a folder in `home`. */
export const cache: string = resolve(project, process.env['LOOPLESS_CACHE'] || join(home, 'cache'))

const ownerFile = join(home, 'owner')

/**
 * Makes this process the one that runs things in `home`. One that was killed is no hindrance.
 *
 * @returns what gives it up again; undefined when another process has it.
 */
export function takeHome(): (() => void) | undefined {
  mkdirSync(home, { recursive: true })
  if (owner() !== undefined) return undefined
  rmSync(ownerFile, { force: true })
  try {
    // With `wx`, of two that start at once one fails.
    writeFileSync(ownerFile, `${process.pid} ${findProcess(process.pid)?.command ?? ''}`, { flag: 'wx' })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return undefined
    throw error
  }
  return () => rmSync(ownerFile, { force: true })
}

/** The id of the process that runs things in `home`; undefined when none does. */
export function owner(): number | undefined {
  const match = /^(\d+) (.*)$/s.exec(readOwner())
  if (!match) return undefined
  const pid = Number(match[1])
  // After a reboot the number may be anybody's.
  return findProcess(pid)?.command === match[2] ? pid : undefined
}

function readOwner(): string {
  try {
    return readFileSync(ownerFile, 'utf8')
  } catch {
    return ''
  }
}
