import { expect, it } from 'vitest'
import { defineHandlers, poll } from '../../src/index.ts'
import { exampleDatabase, webhooks } from '../../tests/support/examples.ts'
import recordActivity from './record-activity.ts'

const { sql, publish } = await exampleDatabase()
const handlers = defineHandlers({ 'record-activity': recordActivity })
const now = new Date('2030-01-01T00:00:00Z')

it('writes a row for an event of a repository', async () => {
  const [star] = webhooks('star', 'created')
  const id = await publish('github.star.created', star)
  expect(await poll(now, { sql, handlers })).toMatchObject({ succeeded: 1 })
  expect(await sql`select event_id, repository, event, actor from example.repository_activity`).toEqual([
    { event_id: id, repository: 'Codertocat/Hello-World', event: 'github.star.created', actor: 'Codertocat' },
  ])
})

it('passes over an event that is of no repository', async () => {
  const [blocked] = webhooks('org_block', 'blocked')
  const id = await publish('github.org_block.blocked', blocked)
  expect(await poll(now, { sql, handlers })).toMatchObject({ succeeded: 1, dead: 0 })
  expect(await sql`select from example.repository_activity where event_id = ${id}`).toHaveLength(0)
})
