import { type ChildProcess, fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, expect, inject, it } from 'vitest'
import { readMigrations } from '../src/db/migrate.ts'
import { connect, migrate, poll, publish, redrive, register, type Sql } from '../src/index.ts'
import type { OldPollerReport } from './support/old-poller-client.ts'
import { as, testRoles } from './support/roles.ts'
import { withSession } from './support/session.ts'
import { fragile, retried, upgradeHandlers } from './support/upgrade-handlers.ts'

/** The newest migration of the version before this one: every later one is applied while pollers of that version poll. */
const from = '0005_create_prune'

// The old pollers are processes that claim as the version before did, as a role that may call the functions of the schema
// as it was before, and none that came later: what they ask of the database is what that version asked.

const migrations = readMigrations()
const start = migrations.findIndex(({ name }) => name === from) + 1
const nameOf = (count: number): string => migrations[count - 1]?.name ?? ''
const steps = migrations.slice(start).map((_, index): [number, number] => [start + index, start + index + 1])
const upgrades = [...steps, [start, migrations.length] as [number, number]].map(
  ([before, after]) => [nameOf(before), nameOf(after), before, after] as const,
)

const client = fileURLToPath(new URL('support/old-poller-client.ts', import.meta.url))
const roles = testRoles()
const made: string[] = []
const children: ChildProcess[] = []
afterAll(async () => {
  for (const child of children) child.kill('SIGKILL')
  await withSession(inject('serverUrl'), async (sql) => {
    for (const name of made) await sql`drop database ${sql(name)} with (force)`
  })
})

async function emptyDatabase(): Promise<string> {
  const name = `loopless_${randomUUID().replaceAll('-', '')}`
  await withSession(inject('serverUrl'), (sql) => sql`create database ${sql(name)}`)
  made.push(name)
  const url = new URL(inject('serverUrl'))
  url.pathname = `/${name}`
  return url.href
}

const hours = (count: number): Date => new Date(Date.now() + count * 3_600_000)

/** Publishes an event of each kind, and gives each a state that stays until the clock is moved on. */
async function fillWithEveryState(sql: Sql, url: string, role: string): Promise<void> {
  await sql.begin(async (tx) => {
    await publish(tx, retried({ conduct: 'fail' }))
    await publish(tx, fragile({ conduct: 'fail' }))
    await publish(tx, retried({ conduct: 'succeed' }), { dueAt: hours(1) })
  })
  const { last } = await startOldPoller(url, role, 'once').ended()
  expect(last).toMatchObject({ retried: 1, dead: 1 })

  // claimed by a poller that has died: from the log, and a delivery
  for (let count = 0; count < 3; count++)
    await sql.begin((tx) => publish(tx, retried({ conduct: 'succeed' })))
  await claim(sql, hours(1))
  await sql.begin((tx) => publish(tx, retried({ conduct: 'succeed' }), { dueAt: new Date() }))
  await claim(sql, hours(1))
  expect(
    await sql`
      select
        (select count(*)::int from loopless.batch where settled_at is null and lease is not null) as batches,
        (select count(*)::int from loopless.delivery where lease is not null) as leased,
        (select count(*)::int from loopless.delivery where reason = 'retry' and lease is null) as retrying,
        (select count(*)::int from loopless.delivery where reason = 'delayed' and lease is null) as delayed,
        (select count(*)::int from loopless.dead_letter) as dead`,
  ).toEqual([{ batches: 1, leased: 1, retrying: 1, delayed: 1, dead: 1 }])
}

async function claim(sql: Sql, until: Date): Promise<void> {
  const claimed = await sql`
    select from loopless.claim(${new Date()}, ${randomUUID()}, ${until}, 10, 1000000, 10, ${upgradeHandlers.hash})`
  expect(claimed).not.toHaveLength(0)
}

/** Publishes until it is told to stop; returns how many it has published, when asked. */
function startPublisher(url: string) {
  let isStopped = false
  let published = 0
  const done = withSession(url, async (sql) => {
    while (!isStopped) {
      await sql.begin((tx) =>
        publish(tx, published % 2 ? fragile({ conduct: 'succeed' }) : retried({ conduct: 'succeed' })),
      )
      published++
      await sleep(2)
    }
  })
  return {
    count: () => published,
    async stop() {
      isStopped = true
      await done
    },
  }
}

/** A process that polls as `role`, until it is told to end, or once. */
function startOldPoller(url: string, role: string, times = 'until the end') {
  const child = fork(client, [as(role, url), times])
  children.push(child)
  const ended = async (): Promise<OldPollerReport> => {
    const [report] = (await once(child, 'message')) as [OldPollerReport]
    return report
  }
  const end = (): Promise<OldPollerReport> => {
    child.send('end')
    return ended()
  }
  return { end, ended }
}

it.each(upgrades)(
  'goes from %s to %s while old code polls, and handles what is in whatever state',
  async (_, __, before, after) => {
    const url = await emptyDatabase()
    const sql = connect(url, { max: 3 })
    await migrate(sql, migrations.slice(0, before))
    const role = await roles.make()
    await sql`create table effect (event_id bigint, handler text, written_by text default current_user, primary key (event_id, handler))`
    await sql`create table mended ()`
    await sql`grant insert on effect to ${sql(role)}`
    await sql`grant select on mended to ${sql(role)}`
    await sql`grant usage on schema loopless to ${sql(role)}`
    await sql`grant execute on all functions in schema loopless to ${sql(role)}`
    await sql`grant select on all tables in schema loopless to ${sql(role)}`
    await register(sql, upgradeHandlers, new Date())
    await fillWithEveryState(sql, url, role)

    const oldPollers = [startOldPoller(url, role), startOldPoller(url, role)]
    const publisher = startPublisher(url)
    const oldEffects = async (since = 0): Promise<number> =>
      (await sql`select from effect where written_by = ${role} and event_id > ${since}`).length
    while ((await oldEffects()) < 20);

    // one publisher's transaction is open as the migrations begin
    await withSession(url, async (open) => {
      await open`begin`
      await publish(open, retried({ conduct: 'succeed' }))
      const migrating = migrate(sql, migrations.slice(0, after))
      const state = { isDone: false }
      void migrating.finally(() => {
        state.isDone = true
      })
      const waiting = () =>
        open`select from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())`
      while (!state.isDone && (await waiting()).length === 0);
      await open`commit`
      expect(await migrating).toEqual(migrations.slice(before, after).map(({ name }) => name))
    })

    // old code goes on, publishing and polling
    const [newest] = await sql`select max(id) as id from loopless.event`
    const count = publisher.count()
    while ((await oldEffects(Number(newest?.['id']))) < 20 || publisher.count() < count + 20);
    await publisher.stop()
    const reports = await Promise.all(oldPollers.map((poller) => poller.end()))
    expect(reports.flatMap(({ errors }) => errors)).toEqual([])

    // new code takes over what is left, by the newest schema
    await migrate(sql)
    await sql`insert into mended default values`
    const expected = await sql`select id from loopless.event order by id`
    await register(sql, upgradeHandlers, new Date())
    await redrive(sql, hours(2))
    while ((await poll(hours(2), { sql, handlers: upgradeHandlers, log: () => {} })).claimed > 0);
    while ((await poll(hours(5), { sql, handlers: upgradeHandlers, log: () => {} })).claimed > 0);
    expect(await sql`select event_id as id from effect order by event_id`).toEqual([...expected])
    expect(await sql`select from loopless.delivery`).toEqual([])
    expect(await sql`select from loopless.dead_letter`).toEqual([])
    // nothing else ever failed, as what is done twice would
    expect(await sql`select error_message as message from loopless.attempt`).toEqual([
      { message: 'not mended yet' },
      { message: 'not mended yet' },
    ])
    expect(await sql`select from loopless.batch where settled_at is null`).toEqual([])
    await sql.end({ timeout: 1 })
  },
)
