import { describe, expect, it } from 'vitest'
import { testDatabase } from '../tests/support/database.ts'
import { day, emptyBus, nothing, start } from '../tests/support/retention.ts'
import { InvalidOptionError } from './errors.ts'
import { redrive } from './redrive.ts'

const database = await testDatabase()
const { sql, connect } = database

describe('prune', () => {
  it('removes events and batches that were settled that long ago, and no younger ones', async () => {
    const { publish, poll, prune, events } = await emptyBus(database)
    await publish()
    await poll(start)
    const younger = await publish()
    await poll(day(3))
    expect(await prune(day(7))).toEqual(nothing)
    // the other batch is the installation's baseline, which stays
    expect(await prune(day(8))).toEqual({ ...nothing, events: 1, batches: 1 })
    expect(await events()).toEqual([younger])
    expect(await prune(day(8))).toEqual(nothing)
  })

  it('keeps an event for eventDays after its batch was settled, however long it had waited', async () => {
    const { publish, poll, prune } = await emptyBus(database)
    await publish()
    await poll(day(30))
    expect(await prune(day(36))).toEqual(nothing)
    expect(await prune(day(38))).toMatchObject({ events: 1 })
  })

  it('keeps a younger publication and a later due time, whatever was settled', async () => {
    const { publish, poll, prune, events } = await emptyBus(database)
    const young = await publish()
    const delayed = await publish({ dueAt: day(20) })
    const old = await publish()
    await sql`update loopless.event set published_at = ${day(5)} where id = ${young}`
    await poll(start)
    await poll(day(20))
    expect(await prune(day(8))).toMatchObject({ events: 1 })
    expect(await events()).toEqual([young, delayed])
    expect(await prune(day(13))).toMatchObject({ events: 1 })
    expect(await prune(day(28))).toMatchObject({ events: 1 })
    expect(await events()).not.toContain(old)
  })

  it('keeps what nobody has claimed', async () => {
    const { publish, poll, prune, handled } = await emptyBus(database)
    const ids = [await publish(), await publish()]
    expect(await prune(day(1000))).toEqual(nothing)
    await poll(day(1000))
    expect(handled).toEqual(ids)
  })

  it('empties a window up to the head of the log, and the next claim goes on behind it', async () => {
    const { publish, claim, prune, events, poll, handled } = await emptyBus(database)
    for (let count = 0; count < 5; count++) await publish()
    const all = await events()
    const work = await claim(start, 3)
    await sql`select loopless.settle(${start}, ${work.token}, ${work.batchId})`
    expect(await prune(day(8))).toMatchObject({ events: 3 })
    expect(await events()).toEqual(all.slice(3))
    await poll(day(8))
    expect(handled).toEqual(all.slice(3))
  })

  it('keeps the events of a batch that is leased, or was left by a poller that died, and those behind it', async () => {
    const { publish, claim, prune, poll, events, handled } = await emptyBus(database)
    const first = await publish()
    await poll(start)
    const leased = await publish()
    await claim(start)
    const behind = await publish()
    await poll(start)
    expect(await prune(day(8))).toMatchObject({ events: 1, batches: 1 })
    expect(await events()).toEqual([leased, behind])
    await poll(day(8))
    expect(handled).toEqual([first, behind, leased])
    expect(await prune(day(16))).toMatchObject({ events: 2 })
  })

  it('keeps the part of a batch that was given back, though the batch it was split from is gone', async () => {
    const { publish, claim, prune, poll, events, handled } = await emptyBus(database)
    for (let count = 0; count < 4; count++) await publish()
    const all = await events()
    const work = await claim(start)
    const cut = work.items[1]
    await sql`
      select loopless.settle(
        ${start}, ${work.token}, ${work.batchId}, ${{ split: { xid: cut?.xid, id: cut?.event.id } } as never}::json)`
    await sql`
      insert into loopless.batch (
        claimed_at, settled_at, leased_until, from_snapshot, to_snapshot,
        after_xid, after_id, through_xid, through_id, high_id, size)
      select
        claimed_at, settled_at, leased_until, to_snapshot, pg_current_snapshot(),
        '0', 0, through_xid, through_id, high_id, 0
      from loopless.batch where id = ${work.batchId}`
    expect(await prune(day(8))).toMatchObject({ events: 2, batches: 1 })
    expect(await events()).toEqual(all.slice(2))
    await poll(day(8))
    expect(handled).toEqual(all.slice(2))
  })

  it('keeps an event that waits for a retry, and its attempts', async () => {
    const { publish, poll, prune, fail, handled } = await emptyBus(database)
    const id = await publish()
    fail('always')
    await poll(start)
    await publish()
    expect(await prune(day(1000))).toEqual(nothing)
    expect(await sql`select event_id from loopless.attempt`).toEqual([{ event_id: id }])
    fail('none')
    await poll(day(1000))
    expect(handled).toContain(id)
    expect(await prune(day(2000))).toMatchObject({ events: 2, attempts: 1 })
  })

  it('keeps an event that succeeded late for eventDays after the last attempt that failed', async () => {
    const { publish, poll, prune, fail, handled } = await emptyBus(database)
    const id = await publish()
    fail('always')
    await poll(start)
    await sql`update loopless.delivery set due_at = ${day(6)}`
    await sql`update loopless.attempt set began_at = ${day(5)}, ended_at = ${day(5)}`
    fail('none')
    await poll(day(6))
    expect(handled).toEqual([id])
    expect(await prune(day(12))).toEqual(nothing)
    expect(await prune(day(13))).toEqual({ ...nothing, events: 1 })
  })

  it('keeps the event and the attempts of a dead letter, so that it can be read and redriven', async () => {
    const { publish, poll, prune, fail, handled } = await emptyBus(database)
    const id = await publish()
    fail('always')
    await poll(start)
    await poll(day(1))
    expect(await prune(day(30))).toEqual(nothing)
    fail('none')
    expect(await redrive(sql, day(30))).toBe(1)
    await poll(day(30))
    expect(handled).toEqual([id])
  })

  it('removes a dead letter after deadLetterDays, and then its attempts and its event', async () => {
    const { publish, poll, prune, fail } = await emptyBus(database)
    await publish()
    fail('always')
    await poll(start)
    await poll(day(1))
    expect(await prune(day(32))).toEqual({ ...nothing, events: 1, attempts: 2, deadLetters: 1 })
  })

  it('never removes an event of a transaction that committed late', async () => {
    const { publish, poll, prune, events, handled } = await emptyBus(database)
    const late = await connect({ max: 1 }).reserve()
    await late`begin`
    const [row] = await late<{ id: string }[]>`select loopless.publish('order.placed', '{}') as id`
    const early = await publish()
    await poll(start)
    expect(await prune(day(500))).toMatchObject({ events: 1 })
    await late`commit`
    late.release()
    expect(await prune(day(1000))).toMatchObject({ events: 0 })
    expect(await events()).toEqual([row?.id])
    await poll(day(1000))
    expect(handled).toEqual([early, row?.id])
    expect(await prune(day(1008))).toMatchObject({ events: 1 })
  })

  it('removes expired dedupe keys and keeps the others', async () => {
    const { publish, prune } = await emptyBus(database)
    await publish({ dedupeKey: 'first' })
    await publish({ dedupeKey: 'second' })
    await sql`update loopless.dedupe_key set expires_at = ${start} where key = 'first'`
    await sql`update loopless.dedupe_key set expires_at = ${day(1)} where key = 'second'`
    expect(await prune(start)).toMatchObject({ dedupeKeys: 1 })
    expect(await sql`select key from loopless.dedupe_key`).toEqual([{ key: 'second' }])
  })

  it('removes failed wakes after attemptDays', async () => {
    const { prune } = await emptyBus(database)
    await sql`
      insert into loopless.wake_failure (failed_at, error_code, error_message)
      values (${start}, 'XX000', 'first'), (${day(1)}, 'XX000', 'second')`
    expect(await prune(day(30.5))).toMatchObject({ wakeFailures: 1 })
    expect(await sql`select error_message as message from loopless.wake_failure`).toEqual([
      { message: 'second' },
    ])
  })

  it('leaves a dead letter to the transaction that redrives it', async () => {
    const { publish, poll, prune, fail, events, handled } = await emptyBus(database)
    const id = await publish()
    fail('always')
    await poll(start)
    await poll(day(1))
    const other = await connect({ max: 1 }).reserve()
    await other`begin`
    await other`select loopless.redrive(${day(90)})`
    expect(await prune(day(90))).toMatchObject({ deadLetters: 0, events: 0, attempts: 0 })
    await other`commit`
    other.release()
    expect(await prune(day(90))).toMatchObject({ deadLetters: 0, events: 0, attempts: 0 })
    expect(await events()).toEqual([id])
    fail('none')
    await poll(day(90))
    expect(handled).toEqual([id])
  })

  it('refuses settings out of range', async () => {
    const { prune } = await emptyBus(database)
    for (const settings of [{ chunk: 0 }, { chunk: 1.5 }, { eventDays: -1 }, { attemptDays: Number.NaN }]) {
      await expect(prune(start, settings)).rejects.toBeInstanceOf(InvalidOptionError)
    }
  })
})
