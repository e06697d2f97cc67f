import { defineHandler, defineHandlers, discard } from '../../src/index.ts'

interface Order {
  /** What the handler is to do with it. */
  readonly fate?: 'retry' | 'discard'
}

/** What the build makes of functions/handlers, for the tests of the CLI. */
export const handlers = defineHandlers({
  mail: defineHandler('order.*', { jitter: 0, baseDelaySeconds: 3_600, maxAttempts: 2 }, (event, { log }) => {
    const { fate } = event.payload as Order
    if (fate === 'retry') throw new Error('the mail server said \u001b[31m503\u001b[0m\nand closed')
    if (fate === 'discard') throw discard('not ours')
    log.info('sent', { id: event.id })
  }),
  stock: defineHandler('order.placed', {}, () => {}),
})
