import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'

/** A process of this machine that has not ended. */
export interface RunningProcess {
  pid: number
  parent: number
  /** The command line, its words separated by spaces. */
  command: string
}

/**
 * Looks a process up; undefined when it has ended. A zombie has ended: where nothing reaps orphans, as in many
 * containers, it stays in the table for ever. Linux is read from /proc, as small images have no `ps`.
 */
export function findProcess(pid: number): RunningProcess | undefined {
  if (process.platform !== 'linux') return fromPs(['-p', String(pid)])[0]
  try {
    // The second field is the name in parentheses, which may hold anything: count from the last one.
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (state === 'Z' || state === 'X') return undefined
    const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim()
    return { pid, parent: Number(parent), command }
  } catch {
    return undefined
  }
}

/** The children of a process that have not ended. */
export function childrenOf(pid: number): RunningProcess[] {
  const all =
    process.platform === 'linux'
      ? readdirSync('/proc')
          .filter((name) => /^\d+$/.test(name))
          .map((name) => findProcess(Number(name)))
      : fromPs(['-A'])
  return all.filter((found): found is RunningProcess => found?.parent === pid)
}

/** Signals a process; one that has ended already is no error. */
export function signalProcess(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

function fromPs(which: string[]): RunningProcess[] {
  let table: string
  try {
    table = execFileSync('ps', [...which, '-o', 'pid=,ppid=,stat=,args='], { encoding: 'utf8' })
  } catch {
    return []
  }
  return table
    .split('\n')
    .map((line) => /^\s*(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line))
    .filter((match) => match !== null && !match[3]?.startsWith('Z'))
    .map((match) => ({ pid: Number(match?.[1]), parent: Number(match?.[2]), command: match?.[4] ?? '' }))
}
