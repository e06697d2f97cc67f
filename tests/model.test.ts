import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { claim, claimAlone } from '../src/claim.ts'
import {
  type ConnectOptions,
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  discard,
  drain,
  type HandledMessage,
  LeaseLostError,
  type OutgoingEvent,
  poll,
  publishMany,
  redrive,
  type Sql,
} from '../src/index.ts'
import type { Item } from '../src/items.ts'
import type { ClaimLimits } from '../src/lease.ts'
import { BusModel, type Conduct, type DroppedItem, maxAttempts, retryDelayMs } from './support/bus-model.ts'
import { testDatabase } from './support/database.ts'
import { tortureSeconds } from './support/torture.ts'

const { url, sql } = await testDatabase()
await sql`create table effect (event_id bigint not null, handler text not null)`
const seconds = tortureSeconds ?? 7

// What the actions of a run work on: two pollers, and three sessions whose transactions stay open.
const session = (options?: ConnectOptions): Sql => connect(url, { idleInTransactionTimeoutMs: 0, ...options })
const pollers = [session(), session()] as const
const innerPoller = session()
const writers = [session(), session(), session()] as const

interface Payload {
  /** What its first handler does at each attempt, and its second. */
  readonly conducts: readonly [ReadonlyArray<Conduct>, ReadonlyArray<Conduct>]
}
const events = {
  one: defineEvent('model.one'),
  two: defineEvent('model.two'),
  many: defineEvent('model.many'),
  nobody: defineEvent('model.nobody'),
}
const handlersOf = {
  one: ['one'],
  two: ['two', 'two-transactional'],
  many: ['many', 'many-transactional'],
  nobody: [],
}
type Kind = keyof typeof events

/** Done by the first handler that is called: what happens while a poll holds its lease. */
let interlude: ((handler: string, ids: ReadonlyArray<string>) => Promise<void>) | null = null
/** Aborted by the handlers after some calls. */
let stopAfter: { calls: number; controller: AbortController } | null = null

async function called(handler: string, ids: ReadonlyArray<string>): Promise<void> {
  if (stopAfter && stopAfter.calls-- <= 0) stopAfter.controller.abort()
  const next = interlude
  interlude = null
  await next?.(handler, ids)
}

function behave(payload: unknown, index: 0 | 1, attempt: number): void {
  const conduct = (payload as Payload).conducts[index][attempt - 1]
  if (conduct === 'fail') throw new Error('As told.')
  if (conduct === 'discard') throw discard('As told.')
}

const options = { maxAttempts, baseDelaySeconds: retryDelayMs(1) / 1_000, jitter: 0, timeoutSeconds: 60 }
const handlers = defineHandlers({
  one: defineHandler(events.one, options, async ({ id, payload }, { attempt }) => {
    await called('one', [id])
    behave(payload, 0, attempt)
  }),
  two: defineHandler(events.two, options, async ({ id, payload }, { attempt }) => {
    await called('two', [id])
    behave(payload, 0, attempt)
  }),
  'two-transactional': defineHandler(
    events.two,
    { ...options, transactional: true },
    async ({ id, payload }, { attempt, tx }) => {
      await tx`insert into effect (event_id, handler) values (${id}, 'two-transactional')`
      behave(payload, 1, attempt)
    },
  ),
  many: defineHandler(events.many, { ...options, batch: true }, async (list) => {
    await called(
      'many',
      list.map(({ id }) => id),
    )
    return { failed: list.flatMap(({ id, payload, attempt }) => failureOf(id, payload, 0, attempt)) }
  }),
  'many-transactional': defineHandler(
    events.many,
    { ...options, batch: true, transactional: true },
    async (list, { tx }) => {
      const failed = list.flatMap(({ id, payload, attempt }) => failureOf(id, payload, 1, attempt))
      const succeeded = list.map(({ id }) => id).filter((id) => failed.every((one) => one.id !== id))
      await tx`
        insert into effect (event_id, handler)
        select id, 'many-transactional' from unnest(${succeeded}::text[]::bigint[]) id`
      return { failed }
    },
  ),
})

function failureOf(
  id: string,
  payload: unknown,
  index: 0 | 1,
  attempt: number,
): { id: string; error: unknown }[] {
  try {
    behave(payload, index, attempt)
    return []
  } catch (error) {
    return [{ id, error }]
  }
}

interface Dropped {
  readonly token: string
  readonly batchId: string | null
  readonly items: ReadonlyArray<DroppedItem & { readonly deliveryId: string | null }>
}

const counts = {
  runs: 0,
  handled: 0,
  leasesLost: 0,
  dropped: 0,
  settledLate: 0,
  refusedLate: 0,
  redriven: 0,
  deaths: 0,
}

/** A run of the property: the real bus beside the model. */
class World {
  now = Date.UTC(2026, 0, 1)
  readonly model = new BusModel()
  readonly dropped: Dropped[] = []
  /** Published in a writer's open transaction. */
  readonly open: (Publish[] | null)[] = [null, null, null]
  /** Of the polls under way, the innermost last. */
  readonly polls: number[] = []
  /** What the outermost poll runs alone while others may find its lease expired, `event:handler`. */
  runningAlone: string | null = null

  /** What went wrong where a throw would be swallowed. */
  problem: unknown = null

  readonly onHandled = (message: unknown): void => {
    const one = message as HandledMessage
    counts.handled++
    try {
      const isOwn = this.polls.length === 1 && this.runningAlone === `${one.eventId}:${one.handler}`
      if (isOwn) this.model.undrop(one.eventId, one.handler)
      this.model.handled(one, this.polls.at(-1) ?? Number.NaN, one.handler.endsWith('-transactional'))
    } catch (error) {
      this.problem ??= error
    }
  }
}

/** Events that were published, for the model once they are committed. */
interface Publish {
  readonly ids: string[]
  readonly kind: Kind
  readonly dueAt: number
  readonly payload: Payload
}

type Action = (world: World) => Promise<void>

function publishSome(
  writer: number,
  kind: Kind,
  count: number,
  delayMs: number | null,
  payload: Payload,
): Action {
  return async (world) => {
    const client = writers[writer % 3] as Sql
    const list: OutgoingEvent[] = Array.from({ length: count }, () => events[kind](payload))
    const dueAt = world.now + (delayMs ?? 0)
    const ids = await publishMany(client, list, delayMs === null ? {} : { dueAt: new Date(dueAt) })
    const published = { ids, kind, dueAt: delayMs === null ? 0 : dueAt, payload }
    const transaction = world.open[writer % 3]
    if (transaction) transaction.push(published)
    else commit(world, [published])
  }
}

function commit({ model }: World, published: ReadonlyArray<Publish>): void {
  for (const { ids, kind, dueAt, payload } of published) {
    const conducts = handlersOf[kind].map(
      (handler, index) => [handler, payload.conducts[index as 0 | 1]] as const,
    )
    for (const id of ids) model.publish(id, dueAt, Object.fromEntries(conducts))
  }
}

function begin(writer: number, takesXid: boolean): Action {
  return async (world) => {
    if (world.open[writer]) return
    await writers[writer]?.unsafe('begin')
    if (takesXid) await writers[writer]?.unsafe('select pg_current_xact_id()')
    world.open[writer] = []
  }
}

function end(writer: number, isCommit: boolean): Action {
  return async (world) => {
    const published = world.open[writer]
    if (!published) return
    world.open[writer] = null
    await writers[writer]?.unsafe(isCommit ? 'commit' : 'rollback')
    if (isCommit) commit(world, published)
  }
}

interface PollDetails {
  readonly poller: number
  /** Polls until nothing is due, at one time. */
  readonly drains: boolean
  readonly most: number
  /** Leaves everything that must run alone to others when 0. */
  readonly alone: number
  readonly stopAfterCalls: number | null
  readonly during: ReadonlyArray<Named>
}

function pollOnce({ poller, drains, most, alone, stopAfterCalls, during }: PollDetails): Action {
  return async (world) => {
    const isInner = world.polls.length > 0
    const controller = new AbortController()
    if (!isInner) {
      stopAfter = stopAfterCalls === null ? null : { calls: stopAfterCalls, controller }
      interlude = async (handler, ids) => {
        try {
          await supposeDeath(world, handler, ids)
          for (const { action } of during) await action(world)
        } catch (error) {
          world.problem ??= error
        }
      }
    }
    const client = isInner ? innerPoller : pollers[poller]
    world.polls.push(world.now)
    try {
      const limits = { events: most, alone }
      const { signal } = controller
      const now = new Date(world.now)
      const options = { sql: client as Sql, handlers, limits, signal, log: () => {} }
      if (!drains) await poll(now, options)
      else {
        const deadline = new Date(world.now + 600_000)
        counts.leasesLost += (await drain({ ...options, clock: () => now, deadline })).leasesLost
      }
    } catch (error) {
      if (!(error instanceof LeaseLostError)) throw error
      counts.leasesLost++
    } finally {
      world.polls.pop()
      if (!isInner) {
        interlude = null
        stopAfter = null
        world.runningAlone = null
      }
    }
  }
}

/** A poller that runs an event alone counts as dead once its lease has expired; unless it settles before. */
async function supposeDeath(world: World, handler: string, ids: ReadonlyArray<string>): Promise<void> {
  const isOnly = handlers.handlers.filter((one) => one.name.startsWith(handler)).length === 1
  const [row] = await sql<{ event_id: string; attempt: number; due_at: Date }[]>`
    select event_id, attempt, due_at
    from loopless.delivery
    where event_id = any(${[...ids]}::text[]::bigint[]) and alone and lease is not null
      and (handler = ${handler} or handler is null and ${isOnly})`
  if (!row) return
  const item = { eventId: row.event_id, handler, attempt: row.attempt, alone: true, died: false }
  world.model.drop(item, world.now, row.due_at.getTime())
  world.runningAlone = `${row.event_id}:${handler}`
}

/** A poller that dies right after its claim. */
function abandon(most: number, leaseMs: number): Action {
  return async (world) => {
    const limits = claimLimits(world, most, leaseMs)
    const { token, batchId, items } = await claim(sql, limits)
    drop(world, { token, batchId, items: items.map(itemOf) }, limits.until.getTime())
  }
}

/** A poller that dies while it runs an event alone. */
function abandonAlone(leaseMs: number): Action {
  return async (world) => {
    const limits = claimLimits(world, 1, leaseMs)
    const work = await claimAlone(sql, limits)
    if (work === null) return
    drop(world, { token: work.token, batchId: null, items: work.items.map(itemOf) }, limits.until.getTime())
  }
}

function claimLimits(world: World, most: number, leaseMs: number): ClaimLimits {
  return {
    now: new Date(world.now),
    until: new Date(world.now + leaseMs),
    events: most,
    bytes: 1_000_000,
    deliveries: most,
    handlerSet: handlers.hash,
  }
}

/** A poller dies among others, and the next one with one of the events alone. */
function dieTwice(leaseMs: number): Action {
  const poll = pollOnce({ poller: 0, drains: false, most: 8, alone: 0, stopAfterCalls: null, during: [] })
  return async (world) => {
    for (const action of [abandon(3, leaseMs), step(leaseMs), poll, abandonAlone(leaseMs)])
      await action(world)
  }
}

function itemOf({ event, delivery }: Item): Dropped['items'][number] {
  const eventId = event.id
  if (!delivery) return { eventId, deliveryId: null, handler: null, attempt: 0, alone: false, died: false }
  return { ...delivery, eventId, deliveryId: delivery.id }
}

function drop(world: World, dropped: Dropped, until: number): void {
  for (const item of dropped.items) world.model.drop(item, world.now, until)
  counts.dropped += dropped.items.length
  // one that died is to be charged, not run: nothing of it can be settled as succeeded
  if (dropped.items.length > 0 && !dropped.items.some(({ died }) => died)) world.dropped.push(dropped)
}

/** The poller of a dropped claim was only slow. */
function settleLate(index: number): Action {
  return async (world) => {
    const [late] = world.dropped.splice(index % Math.max(1, world.dropped.length), 1)
    if (!late) return
    const done = late.items.flatMap(({ deliveryId }) => deliveryId ?? [])
    const outcomes = done.length > 0 ? JSON.stringify({ done }) : null
    try {
      await sql`
        select loopless.settle(${new Date(world.now)}, ${late.token}, ${late.batchId}, ${outcomes}::text::json)`
    } catch (error) {
      if ((error as { code?: string }).code !== 'LL010') throw error
      counts.refusedLate++
      return
    }
    counts.settledLate++
    for (const item of late.items) world.model.settleDropped(item)
  }
}

function step(ms: number): Action {
  return async (world) => {
    world.now += ms
  }
}

function redriveAll(): Action {
  return async (world) => {
    const dead = await sql<
      { event_id: string; handler: string }[]
    >`select event_id, handler from loopless.dead_letter`
    expect(await redrive(sql, new Date(world.now))).toBe(dead.length)
    counts.redriven += dead.length
    for (const { event_id, handler } of dead) world.model.redrive(event_id, handler, world.now)
  }
}

/** Polls, and moves the clock to what is due next, until nothing waits. */
async function quiesce(world: World): Promise<void> {
  for (let turn = 0; turn < 500; turn++) {
    const now = new Date(world.now)
    world.polls.push(world.now)
    const report = await poll(now, { sql: pollers[0], handlers, log: () => {} })
    world.polls.pop()
    if (report.claimed > 0) continue
    if (report.nextDueAt === null) return
    world.now = Math.max(world.now, report.nextDueAt.getTime())
  }
  throw new Error('After 500 polls something still waits.')
}

async function found(): Promise<ReturnType<BusModel['end']>> {
  const [row] = await sql<ReturnType<BusModel['end']>[]>`
    select
      array(select event_id || ':' || coalesce(handler, '') from loopless.delivery
        union all select 'batch ' || id from loopless.batch where settled_at is null) as waiting,
      array(select event_id || ':' || handler || ' ' || attempts from loopless.dead_letter) as dead,
      array(select event_id || ':' || handler || ' ' || string_agg(error_class, ',' order by id)
        from loopless.attempt group by event_id, handler) as attempts,
      array(select event_id || ':' || handler from effect) as effects`
  if (!row) throw new Error('No row.')
  return {
    waiting: row.waiting.sort(),
    dead: row.dead.sort(),
    attempts: row.attempts.sort(),
    effects: row.effects.sort(),
  }
}

async function reset(): Promise<void> {
  // not truncate: after it every session would plan every statement anew
  await sql`
    with e as (delete from loopless.event), b as (delete from loopless.batch), d as (delete from loopless.delivery),
      a as (delete from loopless.attempt), l as (delete from loopless.dead_letter)
    delete from effect`
  await sql`
    insert into loopless.batch (
      leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size, settled_at)
    select now(), s, s, '0', 0, '0', 0, 0, 0, now() from pg_current_snapshot() s`
}

// How the actions are drawn.
const conduct = fc.array(fc.constantFrom<Conduct>('fail', 'fail', 'succeed', 'discard'), {
  maxLength: maxAttempts,
})
const leaseMs = fc.constantFrom(1_000, 60_000, 600_000)
const writer = fc.nat(2)
const pollDetails = {
  poller: fc.nat(1),
  drains: fc.boolean(),
  most: fc.integer({ min: 1, max: 8 }),
  alone: fc.constantFrom(0, 1, 20),
}
const simple: fc.Arbitrary<Named> = fc.oneof(
  {
    weight: 9,
    arbitrary: fc
      .record({
        writer,
        kind: fc.constantFrom<Kind>('one', 'one', 'two', 'two', 'many', 'nobody'),
        count: fc.integer({ min: 1, max: 4 }),
        delayMs: fc.option(fc.constantFrom(0, 30_000, 300_000), { freq: 4 }),
        conducts: fc.tuple(conduct, conduct),
      })
      .map((one) => named('publish', one, publishSome(one.writer, one.kind, one.count, one.delayMs, one))),
  },
  { weight: 2, arbitrary: fc.tuple(writer, fc.boolean()).map((one) => named('begin', one, begin(...one))) },
  { weight: 2, arbitrary: fc.tuple(writer, fc.boolean()).map((one) => named('end', one, end(...one))) },
  {
    weight: 6,
    arbitrary: fc
      .tuple(fc.integer({ min: 1, max: 6 }), leaseMs)
      .map((one) => named('abandon', one, abandon(...one))),
  },
  { weight: 4, arbitrary: leaseMs.map((one) => named('abandonAlone', one, abandonAlone(one))) },
  { weight: 2, arbitrary: leaseMs.map((one) => named('dieTwice', one, dieTwice(one))) },
  { weight: 2, arbitrary: fc.nat(3).map((one) => named('settleLate', one, settleLate(one))) },
  {
    weight: 4,
    arbitrary: fc
      .oneof(
        fc.constantFrom(-600_000, -1_000, 1_000, 60_000, 100_000),
        fc.integer({ min: -600_000, max: 1_200_000 }),
      )
      .map((one) => named('step', one, step(one))),
  },
  { weight: 1, arbitrary: fc.constant(named('redrive', null, redriveAll())) },
  {
    weight: 3,
    arbitrary: fc.record(pollDetails).map((one) => polled({ ...one, stopAfterCalls: null, during: [] })),
  },
)
/** Another poller takes what the first one holds. */
const overtake = [
  named('step', 100_000, step(100_000)),
  polled({ poller: 0, drains: false, most: 8, alone: 20, stopAfterCalls: null, during: [] }),
]
const eventful = fc
  .record({
    ...pollDetails,
    stopAfterCalls: fc.option(fc.nat(4)),
    during: fc.oneof(fc.array(simple, { maxLength: 4, size: 'max' }), fc.constant(overtake)),
  })
  .map(polled)

function polled(details: PollDetails): Named {
  return named('poll', details, pollOnce(details))
}

/** An action that a failure can be told by. */
interface Named {
  readonly action: Action
  [fc.toStringMethod](): string
}

function named(name: string, details: unknown, action: Action): Named {
  return { action, [fc.toStringMethod]: () => `${name} ${fc.stringify(details)}` }
}

test(
  'handles events exactly as a small model says, whatever is interleaved',
  async () => {
    const actions = fc.array(fc.oneof({ weight: 3, arbitrary: simple }, { weight: 1, arbitrary: eventful }), {
      minLength: 1,
      maxLength: 60,
      size: 'max',
    })
    const property = fc.asyncProperty(actions, async (list) => {
      counts.runs++
      await reset()
      const world = new World()
      subscribe('loopless:handled', world.onHandled)
      try {
        for (const { action } of list) await action(world)
        await quiesce(world) // what is still open holds nothing else back
        for (const index of world.open.keys()) await end(index, true)(world)
        await quiesce(world)
        if (world.problem) throw world.problem
        const expected = world.model.end()
        counts.deaths += expected.attempts.join().split('PollerDiedError').length - 1
        expect(await found()).toEqual(expected)
      } finally {
        unsubscribe('loopless:handled', world.onHandled)
        for (const index of world.open.keys()) await end(index, false)(world)
      }
    })
    await fc.assert(property, {
      numRuns: tortureSeconds ? 1_000_000 : 100,
      interruptAfterTimeLimit: seconds * 1_000,
      endOnFailure: false,
    })
    if (tortureSeconds) console.log(counts)
  },
  (seconds + 180) * 1_000,
)
