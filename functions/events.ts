import * as v from 'valibot'
import { defineEvent } from '../src/index.ts'

/**
 * Somebody opened an issue on GitHub; what its handlers need of the payload.
 *
 * GitHub sends `body: null` for an issue without a text. This schema asks for a string, so such an event ends in the
 * dead letters: `npm start` shows one. The mend is `body: v.nullable(v.string())`, then `npx loopless dead redrive --all`.
 */
export const issueOpened = defineEvent(
  'github.issues.opened',
  v.object({
    issue: v.object({
      title: v.string(),
      body: v.string(),
      html_url: v.pipe(v.string(), v.url()),
      user: v.object({ login: v.string() }),
    }),
    repository: v.object({ full_name: v.string() }),
  }),
)
