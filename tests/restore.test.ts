import { execFile } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { PostgresServer } from '../infra/local/postgres-server.ts'
import {
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  discard,
  type HandlerSet,
  migrate,
  poll,
  publish,
  publishMany,
  redrive,
  type Sql,
} from '../src/index.ts'
import { type BusyBus, startBusyBus } from './support/busy-bus.ts'
import { testDatabase } from './support/database.ts'
import { type Random, seededRandom } from './support/random.ts'
import { startServer } from './support/server.ts'
import { withSession } from './support/session.ts'

/** What an event of the busy bus is for. */
interface Payload {
  /** Its handler sends it to the dead letters, until it is told to forgive. */
  readonly isDoomed: boolean
}
const moved = defineEvent<Payload>('restore.moved')

/** pg_dump reads its own version and older ones, and the embedded server comes without: Debian's are used. */
function systemPostgres(): string | undefined {
  const root = '/usr/lib/postgresql'
  const programs = ['initdb', 'postgres', 'pg_dump', 'psql', 'pg_resetwal']
  try {
    return readdirSync(root)
      .map((version) => join(root, version, 'bin'))
      .find((directory) =>
        programs.every((name) => statSync(join(directory, name), { throwIfNoEntry: false })),
      )
  } catch {
    return undefined
  }
}

const binDirectory = systemPostgres()
const mustRun = Boolean(process.env['CI'])

describe.skipIf(!binDirectory && !mustRun)(
  binDirectory
    ? 'a busy bus, dumped and restored'
    : 'a busy bus, dumped and restored (needs the package postgresql)',
  () => {
    let folder: string
    let random: Random
    let movedAt: Date
    const servers: PostgresServer[] = []
    const segments = { old: 3, lower: 0, higher: 10 }
    let clusters: Record<'lower' | 'higher', PostgresServer>

    const startCluster = async (segment: number): Promise<PostgresServer> => {
      if (!binDirectory)
        throw new Error('Expected Postgres in /usr/lib/postgresql: install the package postgresql.')
      const server = await startServer({ binDirectory, settings: { max_prepared_transactions: 20 } })
      servers.push(server)
      if (segment > 0) await setNextXid(server, segment)
      return server
    }

    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), 'loopless-dump-'))
      random = seededRandom()
      const [old, lower, higher] = await Promise.all([
        startCluster(segments.old),
        startCluster(segments.lower),
        startCluster(segments.higher),
      ])
      clusters = { lower, higher }
      await withSession(old.url, async (sql) => {
        await migrate(sql)
        await sql`create table effect (event_id bigint not null)`
      })
      const bus = startBus(old, handlersWith(false))
      await sleep(700)
      await withSession(old.url, (sql) => publishDelayed(sql, bus))
      await withSession(old.url, async (sql) => {
        // on a busy machine it takes longer until the bus has seen everything that a dump should hold
        for (
          let state = await countState(sql);
          state.dead === 0 || state.unhandled <= 50;
          state = await countState(sql)
        ) {
          await sleep(100)
        }
      })
      await run(old, 'pg_dump', ['--dbname', old.url, '--file', join(folder, 'dump.sql')])
      movedAt = bus.clock()
      await bus.abandon()
    })
    afterAll(async () => {
      await Promise.all(servers.map((server) => server.destroy()))
      await rm(folder, { recursive: true, force: true })
    })

    const startBus = (server: PostgresServer, handlers: HandlerSet, startAt?: Date): BusyBus =>
      startBusyBus({
        connect: () => connect(server.url),
        random,
        handlers,
        event: () => moved({ isDoomed: random.chance(0.02) }),
        publishers: 6,
        pollers: 3,
        longestMs: 800,
        twoPhase: true,
        ...(startAt && { startAt }),
      })

    const publishDelayed = (sql: Sql, bus: BusyBus): Promise<string[]> =>
      publishMany(
        sql,
        Array.from({ length: 20 }, () => moved({ isDoomed: false })),
        {
          dueAt: new Date(bus.clock().getTime() + 20_000),
        },
      )

    test.for<['lower' | 'higher', number]>([
      ['lower', 6],
      ['higher', 13],
    ])('loses and repeats nothing in a cluster with %s transaction ids', async ([kind, laterSegment]) => {
      const server = clusters[kind]
      await run(server, 'psql', [
        '--quiet',
        '--set',
        'ON_ERROR_STOP=1',
        '--file',
        join(folder, 'dump.sql'),
        server.url,
      ])
      const sql = connect(server.url, { idleInTransactionTimeoutMs: 0 })
      const before = await countState(sql)
      expect(before).toMatchObject({ areXidsHere: kind === 'higher' })
      expect(before.unhandled).toBeGreaterThan(50)
      expect(before.dead).toBeGreaterThan(0)

      // publishers go on here before the first poll, and one of them is still open then
      const early = await publishMany(
        sql,
        Array.from({ length: 30 }, () => moved({ isDoomed: false })),
      )
      await sql.unsafe('begin')
      const open = await publish(sql, moved({ isDoomed: false }))
      const bus = startBus(server, handlersWith(true), movedAt)
      await sleep(700)
      await sql.unsafe('commit')
      expect(await redrive(sql, bus.clock())).toBe(before.dead)
      await bus.stop()
      const log = await eventIds(sql)
      expect(missingFrom(log, [...bus.committed, ...early, open])).toEqual([])
      expect(await effectIds(sql)).toEqual(log)
      expect(await countState(sql)).toMatchObject({ unhandled: 0, dead: 0, deliveries: 0, open: 0 })

      // later the ids of the old cluster are passed: its events do not come back
      await sql.end()
      await setNextXid(server, laterSegment)
      const again = connect(server.url)
      const late = await publishMany(
        again,
        Array.from({ length: 5 }, () => moved({ isDoomed: false })),
      )
      const report = await poll(bus.clock(), { sql: again, handlers: handlersWith(true), log: () => {} })
      expect(report).toMatchObject({ claimed: 5, succeeded: 10, nextDueAt: null })
      expect(await effectIds(again)).toEqual([...log, ...late].sort())
      await again.end()
    })
  },
)

describe('another cluster is noticed by', async () => {
  const at = new Date('2026-01-01T00:00:00Z')
  const signs: [string, string][] = [
    ['its system identifier', `update loopless.bus set cluster = '1'`],
    [
      'the head of the log, when that lies in its future',
      `update loopless.batch
      set to_snapshot = format('%s:%s:', pg_snapshot_xmin(to_snapshot), pg_snapshot_xmax(to_snapshot)::text::bigint + 30)::pg_snapshot
      where id = (select max(id) from loopless.batch)`,
    ],
    [
      'an event, when it lies in its future',
      `with moved as (
        update loopless.event set xid = (xid::text::bigint + 1000000)::text::xid8
        where xid >= (select pg_snapshot_xmax(to_snapshot) from loopless.batch order by id desc limit 1)
        returning id, xid
      )
      update loopless.delivery set event_xid = moved.xid from moved where moved.id = event_id`,
    ],
  ]
  for (const [name, change] of signs) {
    const { sql, connect: open } = await testDatabase()

    test(name, async () => {
      await sql`create table effect (event_id bigint not null)`
      const event = moved({ isDoomed: false })
      const publishSome = (count: number): Promise<string[]> =>
        publishMany(
          sql,
          Array.from({ length: count }, () => event),
        )
      const handlers = handlersWith(true)
      const pollAt = (now: Date) => poll(now, { sql, handlers, log: () => {} })

      const settled = await publishSome(10)
      expect(await pollAt(at)).toMatchObject({ claimed: 10 })
      const claimed = await publishSome(5)
      await sql`
        select loopless.claim(${at}, gen_random_uuid(), ${new Date(at.getTime() + 900_000)}, 100, 1000000, 1, ${handlers.hash})`
      const delayed = await publishMany(sql, [event], { dueAt: new Date(at.getTime() + 60_000) })
      const unclaimed = await publishSome(5)
      const writer = open({ max: 1 })
      await writer.unsafe('begin')
      const uncommitted = await publishMany(writer, [event])
      await sql.unsafe(change)
      const published = await publishSome(3)

      await pollAt(at)
      expect(await effectIds(sql)).toEqual([...settled, ...claimed, ...unclaimed, ...published].sort())
      // what would lie in the past of the old cluster's head by now, had it stayed the head
      for (let count = 0; count < 40; count++) await sql`select pg_current_xact_id()`
      await writer.unsafe('commit')
      while ((await pollAt(new Date(at.getTime() + 60_000))).claimed > 0);
      expect(await effectIds(sql)).toEqual(await eventIds(sql))
      expect(await eventIds(sql)).toEqual(
        [...settled, ...claimed, ...delayed, ...unclaimed, ...uncommitted, ...published].sort(),
      )
      expect(await countState(sql)).toMatchObject({ unhandled: 0, dead: 0, deliveries: 0, open: 0 })
    })
  }
})

describe('a poller that is no superuser', async () => {
  const { sql, url } = await testDatabase()
  const role = `loopless_poller_${process.pid}`
  afterAll(async () => {
    await sql.unsafe(`drop owned by ${role}; drop role ${role}`)
  })

  test('claims and settles with the rights that the operations guide gives a poller', async () => {
    await sql.unsafe(`
      create table effect (event_id bigint not null);
      create role ${role} login;
      select loopless.grant_part(now(), '${role}', 'poller');
      grant insert on effect to ${role}`)
    const ids = await publishMany(sql, [moved({ isDoomed: false }), moved({ isDoomed: true })])
    const poller = connect(Object.assign(new URL(url), { username: role }).href)
    const options = { sql: poller, handlers: handlersWith(false), log: () => {} }
    expect(await poll(new Date('2026-01-01T00:00:00Z'), options)).toMatchObject({
      claimed: 2,
      succeeded: 3,
      dead: 1,
    })
    await poller.end()
    expect(await effectIds(sql)).toEqual(ids.slice(0, 1))
    const [bus] =
      await sql`select cluster = system_identifier::text as is_here from loopless.bus, pg_control_system()`
    expect(bus).toEqual({ is_here: true })
  })
})

/** Two handlers: one leaves an effect, exactly once; one may run again. */
function handlersWith(isForgiving: boolean): HandlerSet {
  const options = { maxAttempts: 1_000, baseDelaySeconds: 1 }
  let calls = 0
  return defineHandlers({
    'leave-effect': defineHandler(
      moved,
      { ...options, transactional: true },
      async ({ id, payload }, { tx }) => {
        if (payload.isDoomed && !isForgiving) throw discard('Doomed.')
        if (++calls % 50 === 0) throw new Error('Now and then.')
        await tx`insert into effect (event_id) values (${id})`
      },
    ),
    plain: defineHandler(moved, options, () => {}),
  })
}

interface State {
  unhandled: number
  dead: number
  deliveries: number
  open: number
  /** Whether every event's transaction id lies in this cluster's past. */
  areXidsHere: boolean
}

async function countState(sql: Sql): Promise<State> {
  const [row] = await sql<State[]>`
    select
      (select count(*)::int from loopless.event e where not exists (select from effect where event_id = e.id)) as unhandled,
      (select count(*)::int from loopless.dead_letter) as dead,
      (select count(*)::int from loopless.delivery) as deliveries,
      (select count(*)::int from loopless.batch where settled_at is null) as open,
      (select bool_and(xid < pg_current_xact_id()) from loopless.event) as "areXidsHere"`
  if (!row) throw new Error('No row.')
  return row
}

async function eventIds(sql: Sql): Promise<string[]> {
  return (await sql<{ id: string }[]>`select id from loopless.event`).map(({ id }) => id).sort()
}

async function effectIds(sql: Sql): Promise<string[]> {
  return (await sql<{ id: string }[]>`select event_id as id from effect`).map(({ id }) => id).sort()
}

function missingFrom(list: ReadonlyArray<string>, ids: ReadonlyArray<string>): string[] {
  const known = new Set(list)
  return ids.filter((id) => !known.has(id))
}

/** Moves a server's transaction ids to the start of a segment of pg_xact; it is stopped for that. */
async function setNextXid(server: PostgresServer, segment: number): Promise<void> {
  await server.stop()
  await run(server, 'pg_resetwal', [
    '--next-transaction-id',
    String(segment * 0x100000),
    server.dataDirectory,
  ])
  await server.start()
}

/** Runs a program of the server's version, as the owner of its data. */
async function run(server: PostgresServer, program: string, args: string[]): Promise<void> {
  const { uid, gid } = statSync(server.dataDirectory)
  const user = process.getuid?.() === 0 && program === 'pg_resetwal' ? { uid, gid } : {}
  await promisify(execFile)(join(server.binDirectory, program), args, { cwd: '/', ...user })
}
