import { setTimeout as sleep } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { installAwsLambda } from '../infra/local/aws-lambda.ts'
import { connect, defineEvent, migrate, publish, type Sql } from '../src/index.ts'
import { type LambdaProcesses, startLambdaProcesses } from './support/lambda-processes.ts'
import { type Random, seededRandom } from './support/random.ts'
import { startServer } from './support/server.ts'
import { tortureSeconds } from './support/torture.ts'

// No schedule: whatever is handled here, a publisher's wake has brought about, but for one poll after each restart.

const seconds = tortureSeconds ?? 3
const published = defineEvent('wake.published')
const kinds = ['read committed', 'read committed', 'repeatable read', 'serializable']

/** One short transaction, within a few polls' time. */
async function publishSoon(sql: Sql, random: Random, kind = 'read committed'): Promise<void> {
  await sleep(random.next() * 60)
  await sql.begin(`isolation level ${kind}`, async (tx) => {
    await publish(tx, published({}))
    await sleep(random.next() * 10)
  })
}

/** Publishers of every kind, until they are told to end. */
function startPublishers(
  connectOne: () => Sql,
  random: Random,
): { committedAt: Map<string, number>; stop(): Promise<void> } {
  const committedAt = new Map<string, number>()
  let isPublishing = true
  const publisher = async (index: number): Promise<void> => {
    const sql = connectOne()
    while (isPublishing) {
      const ids: string[] = []
      const isRolledBack = random.chance(0.1)
      try {
        await sql.begin(`isolation level ${kinds[index % kinds.length]}`, async (tx) => {
          for (let count = random.whole(1, 3); count > 0; count--) {
            ids.push(await publish(tx, published({})))
            if (random.chance(0.1)) await sleep(random.next() * 200)
          }
          if (isRolledBack) throw new Error('Rolled back.')
        })
        const atMs = Date.now()
        for (const id of ids) committedAt.set(id, atMs)
      } catch {} // rolled back, or the server went away
      // dense at times, and at times far apart: pollers go idle between
      await sleep(random.chance(0.5) ? random.next() * 600 : random.next() * 20)
    }
    await sql.end({ timeout: 1 })
  }
  const publishing = Promise.all(Array.from({ length: 4 }, (_, index) => publisher(index)))
  return {
    committedAt,
    stop: async () => {
      isPublishing = false
      await publishing
    },
  }
}

/** Receives what is sent at the commit, as the bridge does. */
async function receive(sql: Sql, lambda: LambdaProcesses): Promise<void> {
  const wake = async (): Promise<void> => {
    const [row] = await sql<{ begun: boolean }[]>`select loopless.begin_waking() as begun`
    if (row?.begun) lambda.invoke('wake')
  }
  await sql.listen('aws_lambda', () => void wake().catch(() => {}))
}

test.each(['at the commit', 'at once'] as const)(
  'loses no wake that is sent %s, whatever is rolled back, killed or restarted',
  async (when) => {
    const random = seededRandom()
    const server = await startServer({ fsync: true })
    onTestFinished(() => server.destroy())
    const lambda = await startLambdaProcesses({
      databaseUrl: server.url,
      concurrency: 4,
      maxPollers: 3,
      ms: 1_500,
    })
    onTestFinished(() => lambda.close())
    const sql = connect(server.url, { max: 2, connectTimeoutSeconds: 2 })
    onTestFinished(() => sql.end({ timeout: 1 }))
    await migrate(sql)
    await sql`create table effect (event_id bigint not null)`
    await installAwsLambda(sql, when)
    await sql.unsafe(`alter database postgres set aws_lambda.endpoint_override = '${lambda.url}'`)
    await sql`select loopless.set_wake(now(), 'wake')`
    if (when === 'at the commit') await receive(sql, lambda)
    const publishers = startPublishers(() => connect(server.url, { connectTimeoutSeconds: 2 }), random)

    const endMs = Date.now() + seconds * 1_000
    let restarts = 0
    while (Date.now() < endMs || restarts === 0 || lambda.counts.killed === 0) {
      await sleep(random.next() * 300)
      if (random.chance(0.5)) lambda.killOne(random)
      if (restarts < seconds / 4 && random.chance(0.2)) {
        restarts++
        await server.crash()
        await server.start()
        lambda.invoke('continue') // the scheduled poll
      }
    }
    // From here on nothing is killed. What was comes back, with the first wake after its marks and leases are over.
    await publishers.stop()
    const unhandled = async (): Promise<number> => {
      await lambda.quiet()
      const [left] = await sql<{ events: number }[]>`
        select count(*)::int as events from loopless.event e
        where not exists (select from effect f where f.event_id = e.id)`
      return left?.events ?? Number.NaN
    }
    const heal = async (): Promise<number> => {
      const [row] = await sql<{ over: boolean }[]>`
        select last_value <= date_part('epoch', clock_timestamp()) * 1000
          and not exists (select from loopless.batch where settled_at is null and lease is not null and leased_until > clock_timestamp())
          and not exists (select from loopless.delivery where lease is not null and due_at > clock_timestamp()) as over
        from loopless.wake_mark`
      if (!row?.over) return Number.NaN
      await sql.begin((tx) => publish(tx, published({})))
      return unhandled()
    }
    await expect.poll(heal, { timeout: 120_000 }).toBe(0)
    // Each burst by itself, with pollers that go idle meanwhile: no later publisher makes up for a wake that is lost.
    const sessions = Array.from({ length: 4 }, () => connect(server.url))
    onTestFinished(
      async () => void (await Promise.all(sessions.map((session) => session.end({ timeout: 1 })))),
    )
    for (let burst = 0; burst < 10 * seconds; burst++) {
      await Promise.all(sessions.map((session, index) => publishSoon(session, random, kinds[index])))
      await expect.poll(unhandled, { timeout: 60_000, message: `burst ${burst}` }).toBe(0)
    }

    const told = {
      when,
      seed: random.seed,
      restarts,
      confirmed: publishers.committedAt.size,
      ...lambda.counts,
    }
    if (tortureSeconds) console.log(told)
    const message = JSON.stringify(told)
    const log = (await sql<{ id: string }[]>`select id from loopless.event order by id`).map(({ id }) => id)
    const effects = (await sql<{ id: string }[]>`select event_id as id from effect order by 1`).map(
      ({ id }) => id,
    )
    const logged = new Set(log)
    expect(
      [...publishers.committedAt.keys()].filter((id) => !logged.has(id)),
      message,
    ).toEqual([])
    expect(effects, message).toEqual(log)
    expect(lambda.counts.killed, message).toBeGreaterThan(0)
    expect(restarts, message).toBeGreaterThan(0)
  },
  (seconds + 240) * 1_000,
)
