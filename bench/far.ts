import { fork } from 'node:child_process'
import { once } from 'node:events'

/** A way to a database that takes 1 ms in each direction (link.ts). */
export interface Far {
  readonly url: string
  close(): void
}

export async function startFar(url: string): Promise<Far> {
  const link = fork(new URL('link.ts', import.meta.url), [url])
  const [port] = await once(link, 'message')
  return {
    url: Object.assign(new URL(url), { port }).href,
    close: () => link.disconnect(),
  }
}
