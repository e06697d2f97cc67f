// Mends postgres.js 3.4.9 in node_modules; `npm run prepare` runs it, on whatever Node is there.
//
// When a connection dies, the released driver can end the process, leave queries unsettled for ever, or run a
// statement of a dead transaction in a later session; and an error amid rows spoils the next result. Upstream: porsager/postgres #1066, #1154, #1208. What is mended
// stands beside each replacement below. tests/driver.test.ts proves it against a server that is killed.
//
// It can go when a release settles every query of a dead connection and that test passes without it: remove
// this file, its call in package.json and the check in esbuild.config.mjs. Until then a new version of
// postgres.js stops here, on purpose: read its connection.js and index.js before you change `version`.

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const version = '3.4.9'

/** An identifier that only a mended copy contains, minified or not: how a bundle is checked. */
export const mendedMarker = 'mendedSession'

/** @typedef {{ why: string, from: string, to: string }} Replacement */

/** @type {Replacement[]} */
const connectionReplacements = [
  {
    why: 'count the sessions of a connection, so that a dead transaction can be told from the next session',
    from: `
    count: 0,
    id
  }`,
    to: `
    count: 0,
    mendedSession: 0,
    mendedClosed: () => Errors.connection('CONNECTION_CLOSED', options),
    id
  }`,
  },
  {
    why: 'a write with no socket threw a TypeError from setImmediate, which nothing can catch',
    from: `
  function nextWrite(fn) {
    const x`,
    to: `
  function forgetWrite() {
    clearImmediate(nextWriteTimer)
    chunk = nextWriteTimer = null
  }

  function abandon() {
    const err = connection.mendedClosed()
    stream && (stream.destroy(err), stream = null)
    query && queryError(query, err)
    while (sent.length)
      queryError(sent.shift(), err)
    query = results = errorResponse = null
    result = new Result()
    rows = 0
  }

  function nextWrite(fn) {
    if (!socket)
      return (forgetWrite(), abandon(), true)

    const x`,
  },
  {
    why: 'a timer that was cleared but not forgotten kept the connection from ever writing again',
    from: `
      error(Errors.connection('CONNECTION_DESTROYED', options))

    clearImmediate(nextWriteTimer)`,
    to: `
      error(Errors.connection('CONNECTION_DESTROYED', options))

    forgetWrite()`,
  },
  {
    why: 'the same, and its bytes were sent ahead of the next session’s startup message',
    from: `
    incomings = null
    clearImmediate(nextWriteTimer)
    socket.removeListener('data', data)`,
    to: `
    incomings = null
    forgetWrite()
    connection.mendedSession++
    socket.removeListener('data', data)`,
  },
  {
    why: 'a query sent between the socket’s error and its close stayed queued: it hung, and took a later answer',
    from: `
    if (initial)
      return reconnect()

    !hadError && (query || sent.length) && error(Errors.connection('CONNECTION_CLOSED', options, socket))`,
    to: `
    abandon()

    if (initial)
      return reconnect()
`,
  },
  {
    why: 'end() waited for ever for a connection that had died',
    from: `
    onclose(connection, Errors.connection('CONNECTION_CLOSED', options, socket))`,
    to: `
    onclose(connection, connection.mendedClosed())
    ended && !initial && (ended(), ending = ended = null)`,
  },
  {
    why: 'after an error amid the rows of a result, the next result began with as many holes as it had rows',
    from: `
    query = results = errorResponse = null
    result = new Result()
    connectTimer.cancel()`,
    to: `
    query = results = errorResponse = null
    result = new Result()
    rows = 0
    connectTimer.cancel()`,
  },
  {
    why: 'a connection that died while it fetched the types was an unhandled rejection; its query is told anyway',
    from: `
        return fetchArrayTypes()`,
    to: `
        return fetchArrayTypes().catch(noop)`,
  },
  {
    why: 'a client that was ended before it had a socket got one, and a session for as long as the process lived',
    from: `
    terminated = false
    backendParameters = {}
    socket || (socket = await createSocket())

    if (!socket)
      return
`,
    to: `
    if (terminated)
      return

    backendParameters = {}
    socket || (socket = await createSocket())

    if (!socket)
      return

    if (terminated)
      return socket.destroy()
`,
  },
  {
    why: 'the same: a connection that was ended is used again only for another query',
    from: `
    connect(query) {
      initial = query`,
    to: `
    connect(query) {
      terminated = false
      initial = query`,
  },
  {
    why: 'the same while its socket was connecting, with TLS',
    from: `
      socket.readyState === 'open' && socket.end(b().X().end())`,
    to: `
      socket.readyState === 'opening' && socket.destroy()
      socket.readyState === 'open' && socket.end(b().X().end())`,
  },
  {
    why: 'the same while it asked for the state of the server',
    from: `
    query.execute()
  }`,
    to: `
    query.catch(noop)
  }`,
  },
]

/** @type {Replacement[]} */
const indexReplacements = [
  {
    why: 'a reserve() that failed stayed queued and took the next connection away for good',
    from: `
        const query = { reserve: resolve, reject }`,
    to: `
        const query = { reserve: resolve, reject: e => (queries.remove(query), reject(e)) }`,
  },
  {
    why: 'a reserved connection that had died ran its queries in the next session, and was released into the pool',
    from: `
    c.reserved.release = true

    const sql = Sql(handler)
    sql.release = () => {
      c.reserved = null
      onopen(c)
    }

    return sql

    function handler(q) {
      c.queue`,
    to: `
    c.reserved.release = true

    const session = c.mendedSession
    c.onclose = e => {
      while (queue.length)
        queue.shift().reject(e)
    }

    const sql = Sql(handler)
    sql.release = () => {
      if (c.mendedSession !== session)
        return
      c.reserved = null
      onopen(c)
    }

    return sql

    function handler(q) {
      if (c.mendedSession !== session)
        return q.reject(c.mendedClosed())
      c.queue`,
  },
  {
    why: 'what a transaction had queued when its connection died never settled',
    from: `
        new Promise((_, reject) => connection.onclose = reject)`,
    to: `
        new Promise((_, reject) => connection.onclose = e => {
          while (queries.length)
            queries.shift().reject(e)
          reject(e)
        })`,
  },
  {
    why: 'a transaction whose connection had died ran on, its commit included, in the next session’s transaction',
    from: `
        q.catch(e => uncaughtError || (uncaughtError = e))
        c.queue`,
    to: `
        q.catch(e => uncaughtError || (uncaughtError = e))
        if (c.mendedSession !== session)
          return q.reject(c.mendedClosed())
        c.queue`,
  },
  {
    why: 'the session that the transaction belongs to',
    from: `
    let savepoints = 0
      , connection`,
    to: `
    let savepoints = 0
      , session
      , connection`,
  },
  {
    why: 'the same',
    from: `
      connection = c
      move(c, reserved)`,
    to: `
      connection = c
      session = c.mendedSession
      move(c, reserved)`,
  },
]

/** @type {Record<string, Replacement[]>} */
const replacementsByFile = {
  'src/connection.js': connectionReplacements,
  'src/index.js': indexReplacements,
  'cjs/src/connection.js': connectionReplacements,
  'cjs/src/index.js': indexReplacements,
}

/**
 * Replaces each fragment, which must stand in the text exactly once. Text that is mended already is returned
 * as it is.
 *
 * @param {string} file its path inside the package, for the error
 * @param {string} text
 * @param {Replacement[]} replacements
 * @returns {string}
 */
function mend(file, text, replacements) {
  if (replacements.every(({ to }) => text.includes(to))) return text
  let mended = text
  for (const { why, from, to } of replacements) {
    const found = mended.split(from).length - 1
    if (found !== 1) {
      throw new Error(
        `Cannot mend postgres.js: expected one place in ${file} for "${why}", found ${found}. ` +
          'If node_modules is half mended or edited by hand, remove node_modules/postgres and run npm ci.',
      )
    }
    mended = mended.replace(from, () => to)
  }
  return mended
}

function mendDriver() {
  const root = new URL('../../node_modules/postgres/', import.meta.url)
  const installed = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')).version
  if (installed !== version) {
    throw new Error(
      `Cannot mend postgres.js: expected version ${version}, found ${installed}. ` +
        'See the head of infra/local/mend-driver.mjs.',
    )
  }
  // Everything is mended in memory before anything is written, so that a failure leaves no half-mended package.
  const mended = Object.entries(replacementsByFile).map(([file, replacements]) => {
    const url = new URL(file, root)
    const text = readFileSync(url, 'utf8')
    return { url, text, mendedText: mend(file, text, replacements) }
  })
  for (const { url, text, mendedText } of mended) if (mendedText !== text) writeFileSync(url, mendedText)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    mendDriver()
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  }
}
