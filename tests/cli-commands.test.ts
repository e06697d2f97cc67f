import { spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { commandLine, handlersPath } from './support/cli.ts'
import { testDatabase } from './support/database.ts'
import { testRoles } from './support/roles.ts'

const { names } = testRoles()
const { sql, url } = await testDatabase()
const loopless = commandLine(url)
const main = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url))

beforeEach(async () => {
  await sql`truncate loopless.event, loopless.batch, loopless.delivery, loopless.dead_letter, loopless.dedupe_key`
  await sql`update loopless.bus set handler_set = null, registered_at = null`
  await sql`select loopless.rebase(now())`
})

/** Runs a command line in a process of its own. */
function startProcess(argv: string[], env: Record<string, string> = { DATABASE_URL: url }) {
  const child = spawn(process.execPath, [main, ...argv], { env: { PATH: process.env['PATH'], ...env } })
  let out = ''
  let err = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text
  })
  const ended = new Promise<{ code: number | null; out: string; err: string }>((resolve) => {
    child.once('close', (code) => resolve({ code, out, err }))
  })
  return { child, ended, said: () => out + err }
}

describe('help', () => {
  it.each([
    '',
    'migrate',
    'roles',
    'roles create',
    'register',
    'publish',
    'poll',
    'status',
    'dead',
    'dead list',
    'dead show',
    'dead redrive',
    'why',
    'wake',
    'wake set',
    'wake off',
    'wake test',
  ])('of "%s" has examples and fits 80 columns', async (command) => {
    const { code, out, err } = await loopless(...command.split(' ').filter(Boolean), '--help')
    expect({ code, err }).toEqual({ code: 0, err: '' })
    expect(out).toMatch(/\nExamples:\n {2}\$ (loopless|export|jq) /)
    for (const line of out.split('\n')) expect(line.length).toBeLessThanOrEqual(80)
  })

  it('of the whole says what the exit codes are', async () => {
    expect((await loopless('--help')).out).toContain('Exit codes: 0 done, 1 failed, 2 used in a wrong way.')
  })

  it('is what a command line without a command gets, as a wrong use', async () => {
    const { code, out, err } = await loopless()
    expect({ code, out }).toEqual({ code: 2, out: '' })
    expect(err).toContain('Usage: loopless <command>')
  })

  it('tells the version', async () => {
    expect(await loopless('--version')).toMatchObject({
      code: 0,
      out: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    })
  })
})

describe('a wrong use', () => {
  it.each([
    [['frob'], "unknown command 'frob'"],
    [['statu'], "unknown command 'statu' (Did you mean status?)"],
    [['status', '--frob'], "unknown option '--frob'"],
    [['status', 'extra'], 'too many arguments'],
    [['why'], "missing required argument 'id'"],
    [['why', 'x'], 'Expected the id of an event, a whole number.'],
    [['why', '-1'], 'Expected the id of an event, a whole number.'],
    [['publish', 'Order Placed', '{}'], 'Expected 1–200 characters: dotted lower-case words'],
    [['publish', 'order.placed', '{'], 'Expected the payload to be JSON: '],
    [['publish', 'order.placed', '{}', '--due-at', 'tomorrow'], 'Expected a time with a zone'],
    [['publish', 'order.placed', '{}', '--due-at', '2030-01-01T00:00:00'], 'Expected a time with a zone'],
    [['publish', 'order.placed', '{}', '--due-at', '2030-13-01T00:00:00Z'], 'Expected a time with a zone'],
    [
      ['publish', 'order.placed', '{}', '--due-at', '2030-02-31T00:00:00Z'],
      'Expected a day that exists, got 2030-02-31.',
    ],
    [
      ['publish', 'order.placed', '{}', '--due-at', '2030-02-29T24:00:00Z'],
      'Expected a day that exists, got 2030-02-29.',
    ],
    [
      ['publish', 'order.placed', '{}', '--due-at', '0000-06-01T00:00:00Z'],
      'Expected a time in the years 1–9999 (UTC).',
    ],
    [
      ['publish', 'order.placed', '{}', '--due-at', '9999-12-31T23:59:59-01:00'],
      'Expected a time in the years 1–9999 (UTC).',
    ],
    [
      ['publish', 'order.placed', '{}', '--due-at', '0001-01-01T00:00:00+01:00'],
      'Expected a time in the years 1–9999 (UTC).',
    ],
    [['publish', 'order.placed', '{}', '--header', 'trace'], 'Expected key=value.'],
    [['publish', 'order.placed', '{}', '--dedupe-key', ''], 'Expected 1–512 characters.'],
    [['poll', '--seconds', '0'], 'Expected 1–86400 seconds.'],
    [['dead', 'list', '--limit', 'many'], 'Expected a whole number of 1–100000.'],
    [['dead', 'list', '--event', 'Order'], 'Expected an event name, or a pattern such as "order.*".'],
    [['dead', 'redrive', 'all'], 'Expected an id, a whole number.'],
    [['wake', 'set'], "required option '--function <arn>' not specified"],
    [['wake', 'set', '--function', 'x', '--timeout-ms', '0'], 'Expected a whole number of 1–60000.'],
    [['wake', 'on'], "unknown command 'on'"],
    [
      ['status', '--database-url', 'mysql://u:secret@h/d'],
      '--database-url: Expected the url of the database to be like postgres://',
    ],
    [
      ['status', '--database-url', 'postgres://u:secret%zz@h/d'],
      '--database-url: The url of the database has a "%"',
    ],
  ])('%j answers 2 and says in one line: %s', async (argv, message) => {
    const { code, out, err } = await loopless(...argv)
    expect({ code, out }).toEqual({ code: 2, out: '' })
    expect(err).toContain(message)
    expect(err).toMatch(/^loopless: [^\n]+\n$/)
    expect(err).not.toContain('secret')
  })

  it('names the variable that holds a url which cannot be read', async () => {
    expect(await commandLine('postgres://u:secret%@h/d')('status')).toMatchObject({
      code: 2,
      out: '',
      err: expect.stringMatching(
        /^loopless: DATABASE_URL: The url [^\n]+ write a "%" in a password as %25\.\n$/,
      ),
    })
  })

  it('says that a database must be given', async () => {
    const { code, err } = await commandLine('')('status')
    expect(code).toBe(2)
    expect(err).toMatch(/^loopless: No database given: set DATABASE_URL or pass --database-url .*\n$/)
  })
})

describe('a database that does not answer', () => {
  const another = (change: (url: URL) => void): string => {
    const changed = new URL(url)
    change(changed)
    return changed.href
  }

  it.each([
    [
      'connection refused',
      'postgres://u:secret@127.0.0.1:1/shop',
      'Cannot reach the database at 127.0.0.1:1/shop: connection refused.',
    ],
    [
      'no such host',
      'postgres://u:secret@shop.invalid/shop',
      'Cannot reach the database at shop.invalid/shop: ',
    ],
    [
      'a server without TLS',
      another((one) => {
        one.searchParams.set('sslmode', 'require')
      }),
      ': it closed the connection; if it does so always, it takes no TLS (ssl = on), which the url asks for by sslmode, and nothing was sent to it.',
    ],
    [
      'no such database',
      another((one) => {
        one.pathname = '/nowhere'
      }),
      '/nowhere refused the connection: database "nowhere" does not exist.',
    ],
    [
      'no schema',
      another((one) => {
        one.pathname = '/template1'
      }),
      'run "loopless migrate"',
    ],
  ])('gives one clear line: %s', async (_, databaseUrl, message) => {
    for (const argv of [
      ['status'],
      ['why', '1'],
      ['dead', 'list'],
      ['publish', 'order.placed', '{}'],
      ['wake', 'test'],
      ['wake', 'off'],
    ]) {
      const { code, out, err } = await commandLine(databaseUrl)(...argv)
      expect({ code, out }).toEqual({ code: 1, out: '' })
      expect(err).toContain(message)
      expect(err).toMatch(/^loopless: [^\n]+\n$/)
      expect(err).not.toContain('secret')
    }
  })

  it('says so when the server is something else', async () => {
    const server = createServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as { port: number }
    const { code, err } = await commandLine(`postgres://127.0.0.1:${port}/shop`)('status')
    server.close()
    expect(code).toBe(1)
    expect(err).toBe(`loopless: Cannot reach the database at 127.0.0.1:${port}/shop: no answer.\n`)
  })
})

describe('migrate', () => {
  it('says that nothing was missing', async () => {
    expect(await loopless('migrate')).toMatchObject({ code: 0, out: 'The schema is up to date.\n', err: '' })
    expect((await loopless('migrate', '--json')).json()).toEqual({ applied: [] })
  })

  it('refuses a newer database in one line', async () => {
    await sql`insert into loopless.schema_migration (version, name, checksum) values (9999, '9999_add_more', '')`
    const { code, err } = await loopless('migrate')
    await sql`delete from loopless.schema_migration where version = 9999`
    expect(code).toBe(1)
    expect(err).toMatch(
      /^loopless: The database is newer than this code: it has migration 9999_add_more, [^\n]+\n$/,
    )
  })
})

describe('roles create', () => {
  const given = ['--publisher', names.publisher, '--poller', names.poller, '--viewer', names.viewer]

  it('says which roles it made and how much it granted, and then that there is nothing to do', async () => {
    const { code, out } = await loopless('roles', 'create', ...given)
    expect(code).toBe(0)
    expect(out).toMatch(
      /^ROLE +PART +ROLE IS +GRANTED\n\S+_publisher +publisher +new +\d rights\n\S+_poller +poller +new +\d\d rights\n\S+_viewer +viewer +new +\d\d rights\n$/,
    )
    expect((await loopless('roles', 'create', ...given)).out).toMatch(/publisher +kept +had all its rights\n/)
    const { roles } = (await loopless('roles', 'create', ...given, '--json')).json() as { roles: object[] }
    expect(roles[1]).toEqual({ part: 'poller', name: names.poller, isCreated: false, granted: [] })
  })

  it('says in one line that there is no RDS to give tokens', async () => {
    const { code, err } = await loopless('roles', 'create', ...given, '--iam')
    expect(code).toBe(1)
    expect(err).toMatch(/^loopless: There is no role rds_iam here: [^\n]+\n$/)
  })
})

describe('publish', () => {
  async function stored(id: string) {
    const [event] =
      await sql`select name, payload::text as payload, headers, due_at from loopless.event where id = ${id}`
    return event
  }

  it('keeps the payload to the letter', async () => {
    const payload = '{"a":1.0, "a" : 123456789012345678901234567890, "\\u0000": "\\ud800"}'
    const { code, json } = await loopless('publish', 'order.placed', payload, '--json')
    expect(code).toBe(0)
    const { id } = json() as { id: string }
    expect(json()).toEqual({ id, name: 'order.placed' })
    expect(await stored(id)).toMatchObject({ name: 'order.placed', payload, headers: null, due_at: null })
  })

  it('says the id and what to do next', async () => {
    const { out } = await loopless('publish', 'order.placed', '{}')
    const [{ id } = {}] = await sql`select id from loopless.event`
    expect(out).toBe(`Published order.placed as event ${id}.\nSee what becomes of it: loopless why ${id}\n`)
  })

  it('passes headers and a due time on', async () => {
    const options = ['--header', 'trace=a=b', '--header', 'empty=', '--due-at', '2030-01-01T09:00:00+01:00']
    const { json } = await loopless('publish', 'order.placed', '{}', '--json', ...options)
    expect(await stored((json() as { id: string }).id)).toMatchObject({
      headers: { trace: 'a=b', empty: '' },
      due_at: new Date('2030-01-01T08:00:00Z'),
    })
  })

  it('writes nothing for a key that was used, and tells the first event', async () => {
    const publish = () => loopless('publish', 'order.placed', '{}', '--dedupe-key', 'one')
    const [first, second] = [await publish(), await publish()]
    expect(first.out).toBe(second.out)
    expect(second.out).toMatch(/^Event \d+ holds the key "one" of order\.placed: /)
    expect(await sql`select count(*)::int as events from loopless.event`).toEqual([{ events: 1 }])
  })

  it('reads a payload from the standard input', async () => {
    const { code, json } = await commandLine(url, '[1, 2]\n')('publish', 'order.placed', '-', '--json')
    expect(code).toBe(0)
    expect(await stored((json() as { id: string }).id)).toMatchObject({ payload: '[1, 2]\n' })
  })

  it('says what the database refuses', async () => {
    const { code, err } = await loopless('publish', 'order.placed', JSON.stringify('x'.repeat(1_100_000)))
    expect(code).toBe(1)
    expect(err).toMatch(
      /^loopless: Expected the payload of order\.placed to be at most 1048576 bytes, got \d+\. [^\n]+\n$/,
    )
  })
})

describe('register and poll', () => {
  let directory = ''
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'loopless-cli-'))
    await writeFile(join(directory, 'other.mjs'), 'export const other = 1')
    await writeFile(join(directory, 'broken.mjs'), 'throw new Error("no\\nsecrets")')
  })
  afterAll(() => rm(directory, { recursive: true }))

  it('register makes the handlers the registered ones', async () => {
    const { code, out } = await loopless('register', '--handlers', handlersPath)
    expect(code).toBe(0)
    expect(out).toMatch(
      /^Registered 2 handlers, set [0-9a-f]{12}\.\n\nHANDLER +TAKES\nmail +order\.\*\nstock +order\.placed\n$/,
    )
    expect((await loopless('register', '--handlers', handlersPath, '--json')).json()).toEqual({
      handlerSet: expect.stringMatching(/^[0-9a-f]{64}$/),
      handlers: [
        { name: 'mail', pattern: 'order.*' },
        { name: 'stock', pattern: 'order.placed' },
      ],
    })
  })

  it('poll handles what is due and says what became of it', async () => {
    for (const payload of ['{}', '{"fate": "retry"}', '{"fate": "discard"}'])
      await loopless('publish', 'order.placed', payload)
    await loopless('publish', 'nobody.cares', '{}')
    const { code, out, err } = await loopless('poll', '--handlers', handlersPath)
    expect(code).toBe(0)
    expect(out).toMatch(/^Claimed 4 events in \d polls, \d+ ms\.$/m)
    expect(out).toContain('Runs: 4 succeeded, 1 to be tried again, 1 dead, 1 without a handler.\n')
    expect(out).toMatch(/^Next due \S+Z \(in 60 min\)\.$/m)
    expect(out).toContain('loopless dead list\n')
    expect(err).toMatch(/^info sent \{.*"handler":"mail".*\}\n$/)
    expect((await loopless('poll', '--handlers', handlersPath, '--json')).json()).toMatchObject({
      claimed: 0,
      drained: true,
    })
    expect((await loopless('poll', '--handlers', handlersPath)).out).not.toContain('Runs:')
  })

  it('poll refuses to run with other handlers than the registered ones', async () => {
    await sql`select loopless.register(now(), 'another', '{}', '{}')`
    const { code, err } = await loopless('poll', '--handlers', handlersPath)
    expect(code).toBe(1)
    expect(err).toMatch(
      /^loopless: The handlers of this poller are not the registered ones; nothing was claimed\. [^\n]+\n$/,
    )
  })

  it.each([
    ['missing.mjs', 'No handlers at missing.mjs: build them first'],
    ['other.mjs', 'to export "handlers", made by defineHandlers, got undefined.'],
    ['broken.mjs', 'Error: no secrets'],
  ])('says what is wrong with the handlers: %s', async (file, message) => {
    const path = file === 'missing.mjs' ? file : join(directory, file)
    for (const command of ['poll', 'register']) {
      const { code, err } = await loopless(command, '--handlers', path)
      expect(code).toBe(1)
      expect(err).toContain(message)
      expect(err).toMatch(/^loopless: [^\n]+\n$/)
    }
  })
})

describe('a process', () => {
  it('answers on its streams and with its exit code', async () => {
    const [good, failed, wrong] = await Promise.all([
      startProcess(['status', '--json']).ended,
      startProcess(['why', '999999']).ended,
      startProcess(['status'], {}).ended,
    ])
    expect(good).toMatchObject({ code: 0, err: '' })
    expect(JSON.parse(good.out)).toMatchObject({ backlog: { events: 0 } })
    expect(failed).toMatchObject({ code: 1, out: '', err: expect.stringMatching(/^loopless: [^\n]+\n$/) })
    expect(wrong).toMatchObject({ code: 2, out: '', err: expect.stringMatching(/^loopless: [^\n]+\n$/) })
  })

  it('ends quietly when its reader has seen enough', async () => {
    const { child, ended } = startProcess(['--help'])
    child.stdout.destroy()
    const { err } = await ended
    expect(err).toBe('')
  })

  it('ends a poll at Ctrl-C, giving back what it did not start', async () => {
    const slow = join(await mkdtemp(join(tmpdir(), 'loopless-cli-')), 'slow.mjs')
    await writeFile(
      slow,
      `import { defineHandler, defineHandlers } from ${JSON.stringify(new URL('../src/index.ts', import.meta.url).href)}
       export const handlers = defineHandlers({
         slow: defineHandler('*', { concurrency: 1 }, async (event, { log, signal }) => {
           log.info('began')
           await new Promise((resolve) => setTimeout(resolve, 300))
         }),
       })`,
    )
    for (let count = 0; count < 20; count++) await sql`select loopless.publish('order.placed', '{}')`
    const { child, ended, said } = startProcess(['poll', '--json', '--handlers', slow])
    await expect.poll(said, { timeout: 60_000 }).toContain('began')
    child.kill('SIGINT')
    const { code, out } = await ended
    expect(code).toBe(0)
    const report = JSON.parse(out) as { succeeded: number; released: number; drained: boolean }
    expect(report.drained).toBe(false)
    expect(report.released).toBeGreaterThan(0)
    expect(report.succeeded + report.released).toBe(20)
    const [row] =
      await sql`select sum(size)::int as free from loopless.batch where settled_at is null and lease is null`
    expect(row).toEqual({ free: report.released })
    await rm(join(slow, '..'), { recursive: true })
  })
})
