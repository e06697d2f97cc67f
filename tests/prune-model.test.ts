import fc from 'fast-check'
import { expect, it } from 'vitest'
import { claim, claimAlone, type Work } from '../src/claim.ts'
import type { Item } from '../src/items.ts'
import type { ClaimLimits } from '../src/lease.ts'
import { prune } from '../src/prune.ts'
import { redrive } from '../src/redrive.ts'
import { testDatabase } from './support/database.ts'
import { day, emptyBus } from './support/retention.ts'

const database = await testDatabase()
const { sql } = database
const slots = [0, 1, 2].map(() => database.connect({ max: 1 }))

/** What becomes of the events of a claim; `lost`: the poller says nothing more. */
const fates = ['success', 'success', 'retry', 'dead', 'split', 'split', 'reopen', 'lost'] as const
type Fate = (typeof fates)[number]

type Step =
  | { kind: 'publish'; slot: number; delayDays: number | null }
  | { kind: 'commit'; count: number }
  | { kind: 'end'; slot: number; commits: boolean }
  | { kind: 'claim'; events: number; alone: boolean }
  | { kind: 'settle'; fate: Fate }
  | { kind: 'tick'; hours: number }
  | { kind: 'redrive' }
  | { kind: 'prune'; aheadDays: number; eventDays: number; deadLetterDays: number; chunk: number }
  | { kind: 'move' }

const kind = <Kind extends Step['kind']>(name: Kind) => fc.constant(name)
const slot = fc.nat({ max: slots.length - 1 })
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ kind: kind('publish'), slot, delayDays: fc.option(fc.nat({ max: 20 })) }),
  },
  { weight: 4, arbitrary: fc.record({ kind: kind('commit'), count: fc.integer({ min: 1, max: 5 }) }) },
  { weight: 2, arbitrary: fc.record({ kind: kind('end'), slot, commits: fc.boolean() }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: kind('claim'),
      events: fc.integer({ min: 1, max: 4 }),
      alone: fc.constant(false),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: kind('claim'), events: fc.constant(1), alone: fc.constant(true) }),
  },
  { weight: 5, arbitrary: fc.record({ kind: kind('settle'), fate: fc.constantFrom<Fate>(...fates) }) },
  { weight: 2, arbitrary: fc.record({ kind: kind('tick'), hours: fc.integer({ min: -48, max: 240 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: kind('redrive') }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: kind('prune'),
      aheadDays: fc.nat({ max: 40 }),
      eventDays: fc.nat({ max: 7 }),
      deadLetterDays: fc.nat({ max: 60 }),
      chunk: fc.integer({ min: 1, max: 4 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: kind('move') }) },
)

/** The bus as a whole: what was published, what came of it, and what is under way. */
class Model {
  now = day(0)
  readonly committed = new Set<string>()
  readonly ended = new Set<string>()
  readonly open: (Set<string> | null)[] = slots.map(() => null)
  readonly held: Work[] = []

  tick(hours: number): void {
    this.now = new Date(this.now.getTime() + hours * 3_600_000)
  }
}

const run: { [Kind in Step['kind']]: (model: Model, step: Extract<Step, { kind: Kind }>) => Promise<void> } =
  {
    async publish(model, { slot, delayDays }) {
      const session = slots[slot] as typeof sql
      if (!model.open[slot]) await session`begin`
      const dueAt = delayDays === null ? null : new Date(model.now.getTime() + delayDays * 86_400_000)
      const [row] = await session<{ id: string }[]>`
      select loopless.publish('order.placed', '{}', due_at => ${dueAt}) as id`
      model.open[slot] = (model.open[slot] ?? new Set()).add(row?.id ?? '')
    },
    async commit(model, { count }) {
      const rows = await sql<{ id: string }[]>`
      select loopless.publish('order.placed', '{}') as id from generate_series(1, ${count}::int)`
      for (const { id } of rows) model.committed.add(id)
    },
    async end(model, { slot, commits }) {
      await (slots[slot] as typeof sql).unsafe(commits ? 'commit' : 'rollback')
      if (commits) for (const id of model.open[slot] ?? []) model.committed.add(id)
      model.open[slot] = null
    },
    async claim(model, { events, alone }) {
      const limits = limitsOf(model.now, events)
      const work = alone ? await claimAlone(sql, limits) : await claim(sql, limits)
      if (work) model.held.push(work)
    },
    async settle(model, { fate }) {
      const work = model.held.shift()
      if (!work || fate === 'lost') return
      const { ended, outcomes } = outcomesOf(work, fate, model.now)
      try {
        await sql`select loopless.settle(${model.now}, ${work.token}, ${work.batchId}, ${JSON.stringify(outcomes)}::text::json)`
      } catch (error) {
        if ((error as { code?: string }).code !== 'LL010') throw error
        return
      }
      for (const { event } of ended) model.ended.add(event.id)
    },
    async tick(model, { hours }) {
      model.tick(hours)
    },
    async redrive(model) {
      await redrive(sql, model.now)
    },
    async prune({ now }, { aheadDays, eventDays, deadLetterDays, chunk }) {
      const settings = { eventDays, attemptDays: eventDays, deadLetterDays, chunk }
      await prune(sql, new Date(now.getTime() + aheadDays * 86_400_000), settings)
      const [row] = await sql`
      select
        (select count(*)::int from loopless.delivery d where not exists (
          select from loopless.event e where e.xid = d.event_xid and e.id = d.event_id)) as deliveries,
        (select count(*)::int from loopless.dead_letter d where not exists (
          select from loopless.event e where e.xid = d.event_xid and e.id = d.event_id)) as "deadLetters"`
      expect(row, 'without their event').toEqual({ deliveries: 0, deadLetters: 0 })
    },
    async move() {
      await sql`update loopless.bus set cluster = 'another' where cluster is not null`
    },
  }

function limitsOf(now: Date, events: number): ClaimLimits {
  const until = new Date(now.getTime() + 3_600_000)
  return { now, until, events, bytes: 1e9, deliveries: events, handlerSet: 'any' }
}

function outcomesOf(work: Work, fate: Fate, now: Date): { ended: ReadonlyArray<Item>; outcomes: object } {
  const fromLog = work.items.filter((item) => item.delivery === null)
  const deliveries = work.items.flatMap(({ delivery }) => delivery ?? [])
  const done = deliveries.map(({ id }) => id)
  const [first] = work.items
  const [cut] = fromLog
  if (fate === 'reopen' && fromLog.length > 0) {
    return { ended: [], outcomes: { reopen: true, released: done } }
  }
  if (fate === 'split' && cut && fromLog.length > 1) {
    const ended = work.items.filter((item) => item.delivery !== null || item === cut)
    return { ended, outcomes: { split: { xid: cut.xid, id: cut.event.id }, done } }
  }
  if ((fate === 'retry' || fate === 'dead') && first) {
    const attempt = (first.delivery?.attempt ?? 0) + 1
    const keepsRow = fate === 'retry' && first.delivery !== null && first.delivery.handler !== null
    const failed = {
      ...(keepsRow && { deliveryId: first.delivery?.id }),
      ...(fate === 'retry' ? { dueAt: new Date(now.getTime() + 7_200_000) } : { dead: 'exhausted' }),
      xid: first.xid,
      id: first.event.id,
      handler: first.delivery?.handler ?? 'keeper',
      attempt,
      charged: true,
      alone: false,
      beganAt: now,
      endedAt: now,
      errorClass: 'Error',
      errorMessage: 'not now',
    }
    return {
      ended: fate === 'dead' ? work.items : work.items.slice(1),
      outcomes: { failed: [failed], done: keepsRow ? done.filter((id) => id !== first.delivery?.id) : done },
    }
  }
  return { ended: work.items, outcomes: { done } }
}

/** What the pollers of a healthy bus do in the end. */
async function drain(model: Model): Promise<void> {
  for (let idle = 0; idle < 2; ) {
    const before = model.held.length
    await run.claim(model, { kind: 'claim', events: 4, alone: idle % 2 === 1 })
    const work = model.held.pop()
    if (
      model.held.length < before ||
      !work ||
      (work.items.length === 0 && !work.advanced && work.repaired === 0)
    ) {
      idle++
      continue
    }
    idle = 0
    model.held.unshift(work)
    await run.settle(model, { kind: 'settle', fate: 'success' })
  }
}

it('leaves every event to be handled and nothing without its event, whatever runs when', {
  timeout: 180_000,
}, async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 20, maxLength: 80, size: 'max' }), async (steps) => {
      await emptyBus(database)
      const model = new Model()
      try {
        for (const one of steps) await run[one.kind](model, one as never)
      } finally {
        for (const slot of slots.keys()) await run.end(model, { kind: 'end', slot, commits: true })
      }
      model.tick(24 * 1000)
      model.held.length = 0
      await drain(model)
      expect(
        [...model.committed].filter((id) => !model.ended.has(id)),
        'never handled',
      ).toEqual([])

      model.tick(24 * 100)
      await prune(sql, model.now)
      expect(await sql`select id from loopless.event`, 'kept for ever').toEqual([])
      expect(await sql`select id from loopless.attempt`).toEqual([])
      expect(await sql`select count(*)::int as kept from loopless.batch having count(*) > 2`).toEqual([])
    }),
    { numRuns: Number(process.env['PRUNE_RUNS'] ?? 25) },
  )
})
