import { type AnyTransaction, executorOf, resultOf } from './db/executor.ts'
import type { OutgoingEvent } from './event.ts'
import { checkIsEvent, prepareEvent } from './prepare-event.ts'
import { checkOptions, type PublishOptions } from './publish-options.ts'

/**
 * Publishes an event in the caller's transaction, the start of every flow: it exists when that commits, and never
 * did when that rolls back. One round trip.
 *
 *     await sql.begin(async (tx) => {
 *       await tx`insert into orders …`
 *       await publish(tx, orderPlaced({ orderId: 1 }))
 *     })
 *
 * @returns the id of the event, a decimal string; with a dedupe key seen before, the id of the first
 * @throws InvalidEventError by code, before anything is sent: see `prepareEvent` and `PublishOptions`
 * @throws SchemaMissingError when the database was not migrated
 * @throws DatabaseError `sqlState` 40001 when a transaction above READ COMMITTED lost a race for a dedupe key
 */
export async function publish(
  tx: AnyTransaction,
  event: OutgoingEvent,
  options?: PublishOptions,
): Promise<string> {
  checkIsEvent(event)
  const executor = executorOf(tx, event.name)
  const { name, payload, options: checked } = await prepareEvent(event, checkOptions(event.name, options))
  const id = await executor.query(
    `select loopless.publish(
      name => $1::text,
      payload => $2::text::json,
      due_at => $3::text::timestamptz,
      dedupe_key => $4::text,
      headers => $5::text::json,
      dedupe_for => $6::text::double precision * interval '1 second'
    )::text`,
    [name, payload, checked.dueAt, checked.dedupeKey, checked.headers, String(checked.dedupeSeconds)],
  )
  return resultOf(id)
}
