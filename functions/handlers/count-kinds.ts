import { defineHandler } from '../../src/index.ts'

/** Logs how many events of each kind passed: one line a poll, whatever was published. */
export default defineHandler('*', { batch: true, baseDelaySeconds: 1 }, (events, { log }) => {
  const kinds: Record<string, number> = {}
  for (const { name } of events) kinds[name] = (kinds[name] ?? 0) + 1
  log.info('Events passed.', { count: events.length, kinds })
})
