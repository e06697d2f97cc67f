import { connect, Socket } from 'node:net'

/** Where one connection goes, and as whom. */
export interface SignIn {
  readonly host: string
  readonly port: number
  readonly database: string
  readonly user: string
  readonly password: string
  /** Authorities of the server's certificate, as PEM. Default: those that Node knows. */
  readonly certificates?: string | ReadonlyArray<string>
}

/** What postgres.js takes and does not declare: a way to open sockets, and a name that is looked up when it is used. */
interface SignInOptions {
  readonly socket: () => Promise<Socket>
  readonly user: string
  readonly database: string
  readonly password: () => string
  readonly ssl: object
}

/**
 * Options of postgres.js that ask `signIn` for each new connection. The driver asks for a password alone, too late for
 * the name that goes with it, and a promise that fails there ends the process; so it is asked where the socket is
 * opened, and what it fails with becomes the failure of the socket.
 */
export function signInOptions(signIn: () => Promise<SignIn>, timeoutSeconds: number): SignInOptions {
  let current: SignIn = { host: '', port: 0, database: '', user: '', password: '' }
  return {
    socket: async () => {
      try {
        current = await signIn()
        return await openSocket(current, timeoutSeconds)
      } catch (error) {
        return failedSocket(error as Error)
      }
    },
    user: lookedUp(() => current.user),
    database: lookedUp(() => current.database),
    password: () => current.password,
    // read as the connection is opened; the host is what the certificate must be for
    ssl: {
      get host() {
        return current.host
      },
      get ca() {
        return current.certificates && [current.certificates].flat()
      },
    },
  }
}

/** Stands where the driver has a string, and is another one with each use. */
function lookedUp(look: () => string): string {
  return { toString: look } as unknown as string
}

function openSocket({ host, port }: SignIn, timeoutSeconds: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port })
    const timer = setTimeout(() => {
      // as the driver's own
      const error = new Error(`write CONNECT_TIMEOUT ${host}:${port}`)
      socket.destroy(Object.assign(error, { code: 'CONNECT_TIMEOUT', address: host, port }))
    }, timeoutSeconds * 1000)
    socket.once('error', (error) => {
      clearTimeout(timer)
      reject(error)
    })
    socket.once('connect', () => {
      clearTimeout(timer)
      socket.removeAllListeners('error')
      // where the driver looks for the name to verify, and for what to say in its errors
      resolve(Object.assign(socket, { host, port }))
    })
  })
}

/** The driver takes no failure for an answer; a socket that fails once it has been taken is one that it handles. */
function failedSocket(error: Error): Socket {
  const socket = new Socket()
  setImmediate(() => socket.destroy(error))
  return socket
}
