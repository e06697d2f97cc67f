import { once } from 'node:events'
import { type AddressInfo, createServer, connect as openSocket, type Socket } from 'node:net'

/** One message of the Postgres protocol on its way. */
export interface ProxyMessage {
  readonly from: 'client' | 'server'
  /** Its letter, for example `P` (Parse) or `Z` (ReadyForQuery); `startup` for the first of a client. */
  readonly type: string
  /** Its body, a character a byte: the SQL of a Parse can be searched in it. */
  readonly text: string
}

/**
 * What becomes of a message: it goes on; it stays here, with all that follows it in its direction; the same until
 * `resume`, and meanwhile nothing is taken from the sender, who has to wait once the sockets are full; the connection is
 * cut before it, to both sides; or it goes on, and the client's side is cut at once while the server still works.
 */
export type Verdict = 'forward' | 'hold' | 'stall' | 'cut' | 'cut behind'

/** A TCP proxy in front of Postgres that can lose a connection at any message. */
export interface Proxy {
  /** The database, through the proxy. */
  readonly url: string
  /** Judges every message from now on. */
  judge(judge: (message: ProxyMessage) => Verdict): void
  /** Lets pass what is stalled. */
  resume(): void
  /**
   * From now on nothing passes on any connection that there is, and nobody is told: what a NAT gateway or a firewall
   * makes of one that was silent for too long. New connections are served.
   */
  forget(): void
  /** Cuts all connections, and takes no more. */
  close(): Promise<void>
}

/** Starts a proxy on a free port in front of the database at `url`. */
export async function startProxy(url: string): Promise<Proxy> {
  const target = new URL(url)
  const sockets = new Set<Socket>()
  let generation = 0
  let judge: (message: ProxyMessage) => Verdict = () => 'forward'
  const stalled: (() => void)[] = []

  const keep = (socket: Socket): Socket => {
    sockets.add(socket)
    socket.setNoDelay(true)
    socket.on('error', () => {}) // a close follows
    socket.on('close', () => sockets.delete(socket))
    return socket
  }
  const proxy = createServer((socket) => {
    const client = keep(socket)
    const server = keep(openSocket({ host: target.hostname, port: Number(target.port) }))
    const born = generation
    const judgeOne = (message: ProxyMessage): Verdict => (born < generation ? 'hold' : judge(message))
    pump({
      from: 'client',
      source: client,
      target: server,
      client,
      server,
      judge: judgeOne,
      stalled,
    })
    pump({
      from: 'server',
      source: server,
      target: client,
      client,
      server,
      judge: judgeOne,
      stalled,
    })
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  const through = new URL(url)
  through.hostname = '127.0.0.1'
  through.port = String((proxy.address() as AddressInfo).port)
  return {
    url: through.href,
    judge: (next) => {
      judge = next
    },
    resume: () => {
      for (const goOn of stalled.splice(0)) goOn()
    },
    forget: () => {
      generation++
    },
    close: async () => {
      for (const socket of sockets) socket.destroy()
      proxy.close()
      await once(proxy, 'close')
    },
  }
}

interface Direction {
  readonly from: 'client' | 'server'
  readonly source: Socket
  readonly target: Socket
  readonly client: Socket
  readonly server: Socket
  judge(message: ProxyMessage): Verdict
  /** What lets directions go on that are stalled. */
  readonly stalled: (() => void)[]
}

function pump({ from, source, target, client, server, judge, stalled }: Direction): void {
  let pending = Buffer.alloc(0)
  let isStartup = from === 'client'
  let isHeld = false
  const pass = (): void => {
    for (;;) {
      const lengthAt = isStartup ? 0 : 1
      if (pending.length < lengthAt + 4) return
      const size = lengthAt + pending.readInt32BE(lengthAt)
      if (pending.length < size) return
      const bytes = pending.subarray(0, size)
      pending = pending.subarray(size)
      const type = isStartup ? 'startup' : String.fromCharCode(bytes[0] ?? 0)
      isStartup = false
      const verdict = judge({ from, type, text: bytes.toString('latin1', lengthAt + 4) })
      if (verdict === 'hold') isHeld = true
      if (verdict === 'stall') {
        source.pause()
        stalled.push(() => {
          target.write(bytes)
          pass()
          source.resume()
        })
        return
      }
      if (verdict === 'cut') {
        client.resetAndDestroy()
        server.destroy()
      }
      if (isHeld || verdict === 'cut') return
      target.write(bytes)
      if (verdict === 'cut behind') {
        client.resetAndDestroy()
        return
      }
    }
  }
  source.on('data', (chunk: Buffer) => {
    if (isHeld) return
    pending = Buffer.concat([pending, chunk])
    pass()
  })
  // What was sent before is still delivered: a server that works learns of it when it looks for the next message.
  source.on('close', () => target.end())
}
