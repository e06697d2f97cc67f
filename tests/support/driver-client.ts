// Uses the driver in a process of its own while tests/driver.test.ts ends and restarts its server on request: an
// error that nothing can catch must end this process and not the test's. Prints what it saw as JSON.

import { once } from 'node:events'
import { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'

const [, , url = '', scenario = ''] = process.argv
const closed = Promise.withResolvers<number>()
const sql = postgres(url, { max: 1, backoff: () => 0.01, onclose: closed.resolve, onnotice: () => {} })

/** Has the test do something to the server. */
async function server(request: 'crash' | 'kill9' | 'start'): Promise<void> {
  process.send?.(request)
  await once(process, 'message')
}

/** The codes of a query whose connection died: which one depends on who notices first. */
const lostCodes = ['CONNECTION_CLOSED', 'ECONNRESET', 'EPIPE']

/** How a query or a client's end came out, within 3 s. */
async function outcome(promise: PromiseLike<unknown>): Promise<string> {
  const ended = Promise.resolve(promise).then(
    () => 'fulfilled',
    ({ code = 'no code' }: { code?: string }) => (lostCodes.includes(code) ? 'lost' : code),
  )
  return Promise.race([ended, sleep(3_000, 'pending')])
}

/** The sockets that the client has opened. */
const sockets = new Set<Socket>()
const { connect, destroy } = Socket.prototype
Socket.prototype.connect = function (this: Socket, ...args: unknown[]): Socket {
  sockets.add(this)
  return Reflect.apply(connect, this, args)
}

/** Calls back when a socket of the client is destroyed, one phase of the event loop before it is closed. */
function onDestroy(listener: () => void): void {
  Socket.prototype.destroy = function (error) {
    if (sockets.delete(this)) listener()
    return destroy.call(this, error)
  }
}

const scenarios: Record<string, () => Promise<unknown>> = {
  /** A query comes right before the socket's close, so that it is in the write buffer then. */
  async buffered() {
    await sql`select 1`
    const query = Promise.withResolvers<string>()
    onDestroy(() => setImmediate(() => query.resolve(outcome(sql`select 1`))))
    await server('crash')
    const buffered = await query.promise
    await server('start')
    return { buffered, next: await outcome(sql`select 1`) }
  },

  /** A query comes between the socket's error and its close, as when a caller tries again at once. */
  async reset() {
    await sql`select 1`
    const again = Promise.withResolvers<string>()
    const failed = sql`select pg_sleep(10)`.catch(() => again.resolve(outcome(sql`select 1`)))
    await sleep(50)
    for (const socket of sockets)
      socket.destroy(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }))
    await failed
    const outcomes = { again: await again.promise }
    return { ...outcomes, next: await Promise.all([sql`select 1 as n`, sql`select 2 as n`]) }
  },

  /** Small queries in every turn of the event loop: the server dies with many in flight. */
  async pipelined() {
    const rounds: unknown[] = []
    for (const end of ['crash', 'kill9', 'crash', 'kill9'] as const) {
      const counts = { sent: 0, answered: 0, wronglyAnswered: 0, rejected: 0 }
      let pumping = true
      const pump = (): void => {
        const n = counts.sent++
        const settle = sql<{ n: number }[]>`select ${n}::int as n`.then(
          (rows) => (rows.length === 1 && rows[0]?.n === n ? counts.answered++ : counts.wronglyAnswered++),
          () => counts.rejected++,
        )
        last = Promise.all([last, settle])
        if (pumping) setImmediate(pump)
      }
      let last: Promise<unknown> = Promise.resolve()
      pump()
      await sleep(50)
      await server(end)
      await sleep(20)
      pumping = false
      await server('start')
      const settled = await outcome(last)
      rounds.push({ ...counts, settled, next: await outcome(sql`select 1`) })
    }
    return rounds
  },

  /** The function of a transaction goes on after its connection died. */
  async transaction() {
    await sql`create table late (what text)`
    const outcomes: Record<string, string> = {}
    const finished = Promise.withResolvers<void>()
    const begun = sql.begin(async (tx) => {
      await tx`insert into late values ('while alive')`
      const running = outcome(tx`select pg_sleep(10)`)
      const queued = Array.from({ length: 200 }, () => outcome(tx`select 1`))
      await server('crash')
      await closed.promise
      outcomes['running'] = await running
      outcomes['queued'] = [...new Set(await Promise.all(queued))].join()
      outcomes['with no connection'] = await outcome(tx`insert into late values ('with no connection')`)
      await server('start')
      await sql`select 1`
      outcomes['in the next session'] = await outcome(tx`insert into late values ('in the next session')`)
      finished.resolve()
    })
    outcomes['transaction'] = await outcome(begun)
    await finished.promise
    await sleep(50)
    return {
      ...outcomes,
      rows: await sql`select what from late`,
      next: await outcome(sql.begin((tx) => tx`select 1`)),
    }
  },

  async reserved() {
    const reserved = await sql.reserve()
    const running = outcome(reserved`select pg_sleep(10)`)
    await server('crash')
    await closed.promise
    const late = await outcome(reserved`select 1`)
    const failed = await outcome(sql.reserve())
    await server('start')
    await sql`select 1`
    reserved.release()
    return { running: await running, late, failed, next: await outcome(sql`select 1`) }
  },

  async end() {
    const running = outcome(sql`select pg_sleep(10)`)
    await sleep(50)
    const ended = outcome(sql.end())
    await server('crash')
    return { running: await running, ended: await ended }
  },

  async error() {
    const failed = await outcome(sql`select 1 / (5 - n) from generate_series(1, 10) n`)
    return { failed, rows: await sql`select 1 as n` }
  },
}

const result = await scenarios[scenario]?.()
console.log(JSON.stringify(result))
await Promise.race([sql.end({ timeout: 1 }), sleep(2_000)])
process.exit(0)
