// A server that is 1 ms away, each way: a process that passes on what it gets a millisecond later.
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

const delayMs = 1
const target = new URL(process.argv[2] ?? '')

const link = createServer((client) => {
  const server = connect({ host: target.hostname, port: Number(target.port) })
  pass(client, server)
  pass(server, client)
})
link.listen(0, '127.0.0.1')
await once(link, 'listening')
process.on('disconnect', () => process.exit())
process.send?.((link.address() as AddressInfo).port)

function pass(from: Socket, to: Socket): void {
  from.setNoDelay(true)
  from.on('data', (chunk) => setTimeout(() => to.write(chunk), delayMs))
  from.on('error', () => {}) // a close follows
  from.on('close', () => setTimeout(() => to.destroy(), delayMs))
}
