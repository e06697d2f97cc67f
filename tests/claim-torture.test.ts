import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { connect, defineEvent, defineHandler, defineHandlers } from '../src/index.ts'
import { stall, startBusyBus } from './support/busy-bus.ts'
import { testDatabase } from './support/database.ts'
import { seededRandom } from './support/random.ts'
import { tortureSeconds } from './support/torture.ts'

const { url, sql } = await testDatabase()
const seconds = tortureSeconds ?? 4

test(
  'claims and settles every committed event exactly once, whatever its transactions do and its pollers lose',
  async () => {
    const random = seededRandom()
    const published = defineEvent('torture.published')
    let plainRuns = 0
    await sql`create table effect (event_id bigint not null)`
    const handlers = defineHandlers({
      plain: defineHandler(
        published,
        { maxAttempts: 1_000, baseDelaySeconds: 0, timeoutSeconds: 900 },
        async (_event, { now }) => {
          plainRuns++
          await stall(now)
        },
      ),
      transactional: defineHandler(
        published,
        { transactional: true, maxAttempts: 1_000, baseDelaySeconds: 0 },
        async ({ id }, { tx }) => {
          await tx`insert into effect (event_id) values (${id})`
        },
      ),
    })
    const [setting] = await sql<{ most: number }[]>`
      select current_setting('max_prepared_transactions')::int as most`
    const bus = startBusyBus({
      connect: () => connect(url),
      random,
      handlers,
      event: () => published({}),
      publishers: 12,
      pollers: 5,
      longestMs: 1_500,
      stallShare: 0.06,
      twoPhase: (setting?.most ?? 0) >= 12,
    })
    await sleep(seconds * 1_000)
    await bus.stop()

    const log = (await sql<{ id: string }[]>`select id from loopless.event`).map((row) => row.id)
    const effects = (await sql<{ id: string }[]>`select event_id as id from effect`).map((row) => row.id)
    const expected = [...bus.committed].flatMap((id) => [`${id}:plain`, `${id}:transactional`])
    const told = { seed: random.seed, ...bus.counts, plainRuns, events: bus.committed.size }
    if (tortureSeconds) console.log(told)

    const message = JSON.stringify(told)
    expect(sorted(log), message).toEqual(sorted(bus.committed))
    expect(sorted(effects), message).toEqual(sorted(bus.committed))
    expect(sorted(bus.settled.keys()), message).toEqual(expected.sort())
    expect(
      [...bus.settled].filter(([, times]) => times !== 1),
      message,
    ).toEqual([])
    expect(await leftovers(), message).toEqual({ open: 0, deliveries: 0, dead: 0 })
    expect(bus.committed.size, message).toBeGreaterThan(100)
  },
  (seconds + 180) * 1_000,
)

async function leftovers(): Promise<unknown> {
  const [row] = await sql`
    select
      (select count(*)::int from loopless.batch where settled_at is null) as open,
      (select count(*)::int from loopless.delivery) as deliveries,
      (select count(*)::int from loopless.dead_letter) as dead`
  return row
}

function sorted(ids: Iterable<string>): string[] {
  return [...ids].sort()
}
