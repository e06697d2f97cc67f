import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { PostgresServer } from '../infra/local/postgres-server.ts'
import { connect, defineEvent, defineHandler, defineHandlers, migrate } from '../src/index.ts'
import { stall, startBusyBus } from './support/busy-bus.ts'
import { seededRandom } from './support/random.ts'
import { startServer } from './support/server.ts'
import { withSession } from './support/session.ts'
import { tortureSeconds } from './support/torture.ts'

const seconds = tortureSeconds ?? 6

let server: PostgresServer
beforeAll(async () => {
  server = await startServer({ fsync: true })
  await withSession(server.url, async (sql) => {
    await migrate(sql)
    await sql`create table effect (event_id bigint not null)`
  })
})
afterAll(() => server.destroy())

test(
  'gives every committed event its effect exactly once, however often the server crashes',
  async () => {
    const random = seededRandom()
    const published = defineEvent('crash.published')
    const ran = new Set<string>()
    const options = { maxAttempts: 60_000, baseDelaySeconds: 0, timeoutSeconds: 900 }
    const handlers = defineHandlers({
      plain: defineHandler(published, options, async ({ id }, { now }) => {
        ran.add(id)
        await stall(now)
      }),
      transactional: defineHandler(published, { ...options, transactional: true }, async ({ id }, { tx }) => {
        await tx`insert into effect (event_id) values (${id})`
      }),
    })
    const bus = startBusyBus({
      connect: () => connect(server.url, { connectTimeoutSeconds: 2 }),
      random,
      handlers,
      event: () => published({}),
      publishers: 6,
      pollers: 4,
      mostEvents: 40, // what a crash interrupted is run again one by one
      longestMs: 400,
      stallShare: 0.02,
      survive: true,
    })
    const endMs = performance.now() + seconds * 1_000
    let crashes = 0
    // three at least, one of each kind of end, however slow the machine starts a server
    while (performance.now() < endMs || crashes < 3) {
      await sleep(500 + random.next() * 1_000)
      await (crashes++ % 3 === 2 ? server.kill9() : server.crash())
      await server.start()
    }
    await bus.stop()

    const told = { seed: random.seed, crashes, ...bus.counts, confirmed: bus.committed.size }
    const message = JSON.stringify(told)
    if (tortureSeconds) console.log(told)
    await withSession(server.url, async (sql) => {
      const log = (await sql<{ id: string }[]>`select id from loopless.event`).map((row) => row.id)
      const effects = (await sql<{ id: string }[]>`select event_id as id from effect`).map((row) => row.id)
      const logged = new Set(log)
      expect(
        [...bus.committed].filter((id) => !logged.has(id)),
        message,
      ).toEqual([])
      expect(effects.sort(), message).toEqual(log.sort())
      expect(ran, message).toEqual(new Set(log))
      const [leftovers] = await sql`
        select
          (select count(*)::int from loopless.batch where settled_at is null) as open,
          (select count(*)::int from loopless.delivery) as deliveries,
          (select count(*)::int from loopless.dead_letter) as dead`
      expect(leftovers, message).toEqual({ open: 0, deliveries: 0, dead: 0 })
    })
    expect(crashes, message).toBeGreaterThan(2)
    expect(bus.counts.pollFaults, message).toBeGreaterThan(0)
  },
  (seconds + 180) * 1_000,
)
