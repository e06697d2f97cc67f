import { beforeEach } from 'vitest'
import {
  defineHandlers,
  type Handler,
  type PollOptions,
  type PollReport,
  poll,
  type Sql,
} from '../../src/index.ts'
import { type TestDatabase, testDatabase } from './database.ts'

/** The time of every first poll. */
export const now = new Date('2030-01-01T00:00:00.000Z')

/** That many seconds after `now`. */
export function later(seconds: number): Date {
  return new Date(now.getTime() + seconds * 1000)
}

/** A row of `loopless.delivery`, with what the event says of itself in place of its id. */
export interface DeliveryRow {
  readonly n: unknown
  readonly handler: string | null
  readonly reason: string
  readonly dueAt: Date
  readonly attempt: number
  readonly alone: boolean
  readonly leased: boolean
}

/** A bus of a test file's own, and what tests ask of it. Events are told apart by `n` in their payloads. */
export interface TestBus extends TestDatabase {
  /** The one connection that `poll` uses. */
  readonly poller: Sql
  /** Publishes `{ n }` for each n in order, in one transaction. */
  publish(name: string, ...numbers: number[]): Promise<void>
  /** One poll, with a set of these handlers. */
  poll(
    handlers: Readonly<Record<string, Handler>>,
    options?: Partial<PollOptions> & { readonly at?: Date },
  ): Promise<PollReport>
  deliveries(): Promise<DeliveryRow[]>
  attempts(): Promise<
    {
      n: unknown
      handler: string
      attempt: number
      beganAt: Date
      endedAt: Date
      error: string
      message: string
      stack: string
    }[]
  >
  deadLetters(): Promise<{ n: unknown; handler: string; reason: string; attempts: number; message: string }[]>
  /** Batches that are not settled, oldest first. */
  openBatches(): Promise<{ size: number; leased: boolean; until: Date }[]>
  /** Whether publishers take somebody to be awake. */
  isAwake(): Promise<boolean>
}

/** Makes the calling file's bus; it is empty at the begin of each test. */
export async function testBus(): Promise<TestBus> {
  const database = await testDatabase()
  const { sql, connect } = database
  const poller = connect({ max: 1 })
  beforeEach(() => empty(sql))
  return {
    ...database,
    poller,
    publish: async (name, ...numbers) => {
      await sql`
        insert into loopless.event (name, payload)
        select ${name}, json_build_object('n', n) from unnest(${numbers}::int[]) with ordinality l (n, place) order by place`
    },
    poll: (handlers, { at = now, ...options } = {}) =>
      poll(at, { sql: poller, handlers: defineHandlers(handlers), ...options }),
    deliveries: () => sql`
      select e.payload -> 'n' as n, d.handler, d.reason, d.due_at as "dueAt", d.attempt, d.alone, d.lease is not null as leased
      from loopless.delivery d join loopless.event e on e.id = d.event_id
      order by d.event_xid, d.event_id, d.handler`,
    attempts: () => sql`
      select e.payload -> 'n' as n, a.handler, a.attempt, a.began_at as "beganAt", a.ended_at as "endedAt",
        a.error_class as error, a.error_message as message, a.error_stack as stack
      from loopless.attempt a join loopless.event e on e.id = a.event_id
      order by a.event_id, a.handler, a.id`,
    deadLetters: () => sql`
      select e.payload -> 'n' as n, l.handler, l.reason, l.attempts, l.error_message as message
      from loopless.dead_letter l join loopless.event e on e.id = l.event_id
      order by l.event_id, l.handler`,
    openBatches: () => sql`
      select size, lease is not null as leased, leased_until as until
      from loopless.batch
      where settled_at is null
      order by after_xid, after_id`,
    isAwake: async () => {
      const [row] = await sql<{ awake: boolean }[]>`
        select last_value > date_part('epoch', clock_timestamp()) * 1000 as awake from loopless.wake_mark`
      return row?.awake ?? false
    },
  }
}

/** As after the migrations: no rows but the baseline. */
async function empty(sql: Sql): Promise<void> {
  await sql.unsafe(`
    delete from loopless.attempt;
    delete from loopless.dead_letter;
    delete from loopless.dedupe_key;
    delete from loopless.delivery;
    delete from loopless.event;
    delete from loopless.batch;
    delete from loopless.handler;
    update loopless.bus set handler_set = null, registered_at = null;
    insert into loopless.batch
      (leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size, settled_at)
    select now(), s, s, '0', 0, '0', 0, 0, 0, now() from pg_current_snapshot() s;
  `)
}
