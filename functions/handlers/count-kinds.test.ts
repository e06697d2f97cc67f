import { expect, it } from 'vitest'
import { defineHandlers, poll } from '../../src/index.ts'
import { exampleDatabase } from '../../tests/support/examples.ts'
import countKinds from './count-kinds.ts'

const { sql, publish } = await exampleDatabase()
const handlers = defineHandlers({ 'count-kinds': countKinds })

it('logs one line for the events of a poll, whatever they are', async () => {
  const lines: object[] = []
  for (const name of ['order.placed', 'github.ping', 'order.placed']) await publish(name, {})
  await poll(new Date('2030-01-01T00:00:00Z'), {
    sql,
    handlers,
    log: (_level, _text, fields) => lines.push(fields),
  })
  expect(lines).toEqual([
    { handler: 'count-kinds', count: 3, kinds: { 'order.placed': 2, 'github.ping': 1 } },
  ])
})
