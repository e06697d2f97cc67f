import * as v from 'valibot'
import { defineHandler } from '../../src/index.ts'

const ofRepository = v.object({
  repository: v.object({ full_name: v.string() }),
  sender: v.optional(v.object({ login: v.string() })),
})

/**
 * Keeps a table of what happens in which repository. Transactional: the row commits in the transaction that settles
 * the event, so there is exactly one, whatever crashes.
 */
export default defineHandler(
  'github.*',
  { transactional: true, baseDelaySeconds: 1 },
  async ({ id, name, payload, publishedAt }, { tx }) => {
    const about = v.safeParse(ofRepository, payload)
    if (!about.success) return // an organisation's event, or an app's
    const { repository, sender } = about.output
    await tx`
      insert into example.repository_activity (event_id, repository, event, actor, published_at)
      values (${id}, ${repository.full_name}, ${name}, ${sender?.login ?? null}, ${publishedAt})`
  },
)
