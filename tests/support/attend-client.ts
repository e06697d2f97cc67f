// The wake function in a process of its own, for tests that end it: it attends whenever it is told to.

import {
  attend,
  connect,
  defineEvent,
  defineHandler,
  defineHandlers,
  help,
  type PollerPurpose,
} from '../../src/index.ts'

/** What the test asks for: an invocation with so much time. */
export interface AttendRequest {
  readonly purpose: PollerPurpose | 'wake'
  readonly ms: number
}

/** What it tells the test. */
export type AttendMessage =
  | { readonly invoke: PollerPurpose }
  | { readonly ended: string; readonly handledAt: ReadonlyArray<readonly [id: string, atMs: number]> }

const [, , url = '', pollers] = process.argv
const maxPollers = Number(pollers)
const sql = connect(url, { applicationName: 'attend-client' })
const tell = (message: AttendMessage): Promise<void> =>
  new Promise((resolve) => process.send?.(message, undefined, {}, () => resolve()))

let handledAt: [string, number][] = []
const inTransaction = { transactional: true, maxAttempts: 60_000, baseDelaySeconds: 0, jitter: 0 } as const
const handlers = defineHandlers({
  effect: defineHandler(defineEvent('wake.published'), inTransaction, async ({ id }, { tx }) => {
    handledAt.push([id, Date.now()])
    await tx`insert into effect (event_id) values (${id})`
  }),
  effects: defineHandler(
    defineEvent('wake.batched'),
    { ...inTransaction, batch: true },
    async (events, { tx }) => {
      const ids = events.map(({ id }) => id)
      await tx`insert into effect (event_id) select unnest(${ids}::bigint[])`
    },
  ),
})

async function run({ purpose, ms }: AttendRequest): Promise<string> {
  const options = {
    sql,
    handlers,
    clock: () => new Date(),
    deadline: new Date(Date.now() + ms),
    limits: { leaseMarginSeconds: 0.5 },
    log: () => {},
    maxPollers,
    invoke: (next: PollerPurpose) => tell({ invoke: next }),
  }
  if (purpose === 'help') return (await help(options)).drained ? 'drained' : 'left'
  const report = await attend({ ...options, lingerMs: 0, helperBacklog: 20 })
  return report.ended
}

process.on('message', async (request: AttendRequest) => {
  handledAt = []
  const ended = await run(request).catch((error: unknown) => `failed: ${error}`)
  await tell({ ended, handledAt })
})
process.on('disconnect', () => process.exit())
