// What src/claim.ts was before leasing and reading were two statements: how a poller of an earlier version claims.

import { type ClaimLimits, release, type Work } from '../../src/claim.ts'
import type { Sql } from '../../src/db/client.ts'
import { databaseError } from '../../src/db/database-error.ts'
import { type Columns, toItems } from '../../src/items.ts'
import { newToken } from '../../src/token.ts'

export { claimAlone, nextDue, release } from '../../src/claim.ts'

interface Claimed extends Columns {
  readonly batch_id: string | null
  readonly advanced: boolean | null
  readonly repaired: number
  readonly alone: boolean
  readonly next_due_at: Date | null
}

/** Claims by the one statement of earlier versions. */
export async function claim(sql: Sql, limits: ClaimLimits): Promise<Work> {
  const token = newToken(sql)
  try {
    const rows = await sql<Claimed[]>`
      select
        batch_id, advanced, repaired, alone, next_due_at,
        ids, waiting, xids, published, names, headers, payloads, deliveries
      from loopless.claim(
        ${limits.now}, ${token}, ${limits.until},
        ${limits.events}, ${limits.bytes}, ${limits.deliveries}, ${limits.handlerSet})`
    const [claimed] = rows
    if (claimed === undefined) throw new Error('loopless.claim returned nothing.')
    const advanced = claimed.advanced ?? false
    return {
      token,
      batchId: advanced ? null : claimed.batch_id,
      items: rows.flatMap(toItems),
      repaired: claimed.repaired,
      aloneWaiting: claimed.alone,
      advanced,
      nextDueAt: claimed.next_due_at,
    }
  } catch (error) {
    await release(sql, token, limits.now)
    throw databaseError(error)
  }
}
