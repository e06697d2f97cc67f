import { defineHandler } from '../../src/index.ts'
import { issueOpened } from '../events.ts'

/**
 * Announces a new issue in a chat. A plain handler runs again when it fails, or when its poller dies before the run
 * is settled: the idempotency key lets the chat know an announcement that it has already.
 */
export default defineHandler(
  issueOpened,
  { baseDelaySeconds: 1, maxAttempts: 8, timeoutSeconds: 10 },
  async ({ payload: { issue, repository } }, { signal, idempotencyKey, log }) => {
    const url = process.env['CHAT_URL']
    if (!url) {
      log.info('The issue is not announced: CHAT_URL is not set.', { issue: issue.html_url })
      return
    }
    const text = `${issue.user.login} opened “${issue.title}” in ${repository.full_name}: ${issue.html_url}`
    const response = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': idempotencyKey },
      body: JSON.stringify({ text }),
      signal,
    })
    const answer = await response.text()
    if (!response.ok) throw new Error(`The chat answered ${response.status}: ${answer.slice(0, 200)}`)
  },
)
