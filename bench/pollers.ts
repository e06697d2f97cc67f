import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'

/** Starts a process that drains when told to (poller.ts), and waits until it has connected. */
export async function startPoller(url: string, kind: 'idle' | 'inserting'): Promise<ChildProcess> {
  const poller = fork(new URL('poller.ts', import.meta.url), [url, kind])
  await once(poller, 'message')
  return poller
}

/** Has pollers drain at the same time, each until nothing is left. @returns how many events it were */
export async function drainTogether(pollers: ReadonlyArray<ChildProcess>): Promise<number> {
  const drained = await Promise.all(pollers.map(drainIn))
  return drained.reduce((sum, one) => sum + one, 0)
}

async function drainIn(poller: ChildProcess): Promise<number> {
  poller.send('drain')
  const [drained] = await once(poller, 'message')
  return Number(drained)
}
