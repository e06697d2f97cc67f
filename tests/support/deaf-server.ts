import { once } from 'node:events'
import { connect } from 'node:net'
import { Worker } from 'node:worker_threads'

/** A port where nobody answers, as behind a security group that lets nobody in: whoever connects waits. */
export async function startDeafServer(): Promise<{ port: number; close(): Promise<void> }> {
  // It never accepts. Once its queue is full, the system lets further ones wait.
  const deaf = new Worker(
    `const server = require('node:net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
      require('node:worker_threads').parentPort.postMessage(server.address().port)
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
    })`,
    { eval: true },
  )
  const [port] = (await once(deaf, 'message')) as [number]
  const queue = Array.from({ length: 8 }, () => connect(port, '127.0.0.1').on('error', () => {}))
  return {
    port,
    async close() {
      for (const socket of queue) socket.destroy()
      await deaf.terminate()
    },
  }
}
