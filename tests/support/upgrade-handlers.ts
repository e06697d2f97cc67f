import { defineEvent, defineHandler, defineHandlers, type HandlerSet } from '../../src/index.ts'

/** What becomes of an event, in its payload. */
export interface UpgradePayload {
  /** `fail`: its handler fails until the table `mended` has a row. */
  readonly conduct: 'succeed' | 'fail'
}

/** Retried an hour later. */
export const retried = defineEvent<UpgradePayload>('upgrade.retried')
/** Dead after the first attempt. */
export const fragile = defineEvent<UpgradePayload>('upgrade.fragile')

const options = { transactional: true, baseDelaySeconds: 3600, jitter: 0 } as const

/** Handlers of both versions: each event leaves one row a handler in `effect`, with who wrote it. */
export const upgradeHandlers: HandlerSet = defineHandlers({
  retried: defineHandler(retried, options, async ({ id, payload }, { tx }) => {
    const mended = await tx`select from mended`
    if (payload.conduct === 'fail' && mended.length === 0) throw new Error('not mended yet')
    await tx`insert into effect (event_id, handler) values (${id}, 'retried')`
  }),
  fragile: defineHandler(fragile, { ...options, maxAttempts: 1 }, async ({ id, payload }, { tx }) => {
    const mended = await tx`select from mended`
    if (payload.conduct === 'fail' && mended.length === 0) throw new Error('not mended yet')
    await tx`insert into effect (event_id, handler) values (${id}, 'fragile')`
  }),
  plain: defineHandler('upgrade.*', { baseDelaySeconds: 3600, jitter: 0 }, () => {}),
})
