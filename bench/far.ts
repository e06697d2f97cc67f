import { fork } from 'node:child_process'
import { once } from 'node:events'

/** A way to a server that takes 1 ms in each direction (link.ts). */
export interface Far {
  /** @returns the url of a database of that server, this way */
  through(url: string): string
  close(): void
}

/** @param server the url of any of its databases */
export async function startFar(server: string): Promise<Far> {
  const link = fork(new URL('link.ts', import.meta.url), [server])
  const [port] = await once(link, 'message')
  return {
    through: (url) => Object.assign(new URL(url), { port }).href,
    close: () => link.disconnect(),
  }
}
