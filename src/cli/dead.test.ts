import { beforeEach, expect, it } from 'vitest'
import { commandLine, handlersPath } from '../../tests/support/cli.ts'
import { testDatabase } from '../../tests/support/database.ts'

const { sql, url } = await testDatabase()
const loopless = commandLine(url)
let ids: string[] = []

beforeEach(async () => {
  await sql`truncate loopless.event, loopless.batch, loopless.delivery, loopless.attempt, loopless.dead_letter`
  await sql`select loopless.rebase(now())`
  for (const name of ['order.placed', 'order.shipped', 'order.placed']) {
    await loopless('publish', name, '{"fate": "discard", "items": [1, 2]}')
  }
  await loopless('poll', '--handlers', handlersPath)
  ids = (await sql<{ id: string }[]>`select id from loopless.dead_letter order by id`).map((row) => row.id)
})

it('lists the dead letters, the newest first, within 80 columns', async () => {
  const { code, out } = await loopless('dead', 'list')
  expect(code).toBe(0)
  const lines = out.trimEnd().split('\n')
  expect(lines[0]).toMatch(/^ *ID +EVENT +NAME +HANDLER +REASON +DIED +ERROR$/)
  expect(lines.slice(1).map((line) => line.trim().split(/ +/)[0])).toEqual(ids.toReversed())
  expect(lines[1]).toMatch(/order\.placed +mail +discarded +.* +DiscardRequest/)
  for (const line of lines) expect(line.length).toBeLessThanOrEqual(80)
})

it('lists those of a handler or of events only, and not more than asked for', async () => {
  const list = async (...options: string[]) => {
    const { json } = await loopless('dead', 'list', '--json', ...options)
    const { total, letters } = json() as { total: number; letters: { eventName: string }[] }
    return [total, ...letters.map(({ eventName }) => eventName)]
  }
  expect(await list('--event', 'order.shipped')).toEqual([1, 'order.shipped'])
  expect(await list('--event', 'order.*', '--limit', '1')).toEqual([3, 'order.placed'])
  expect(await list('--event', 'orde.*')).toEqual([0])
  expect(await list('--handler', 'stock')).toEqual([0])
  expect(await list('--handler', 'mail', '--event', '*')).toHaveLength(4)
  expect((await loopless('dead', 'list', '--limit', '2')).out).toMatch(/^2 of 3: more with --limit$/m)
  expect((await loopless('dead', 'list', '--handler', 'stock')).out).toBe('No dead letters.\n')
})

it('shows one with its event, its payload and every error', async () => {
  const { code, out } = await loopless('dead', 'show', ids[0] ?? '')
  expect(code).toBe(0)
  expect(out).toMatch(new RegExp(`^Dead letter +${ids[0]}$`, 'm'))
  expect(out).toMatch(/^Event +\d+ order\.placed, published \S+Z \(.*\)$/m)
  expect(out).toMatch(/^Reason +discarded: the handler discarded it; 1 attempt$/m)
  expect(out).toMatch(/^Attempt 1, \S+Z \(.*\), took \d+ ms\n {2}DiscardRequest: not ours\n {6}at /m)
  expect(out).toContain('  "fate": "discard",\n    "items": [')
  expect(out).toContain(`loopless dead redrive ${ids[0]}`)
  const json = (await loopless('dead', 'show', ids[0] ?? '', '--json')).json()
  expect(json).toMatchObject({
    id: ids[0],
    payload: '{"fate": "discard", "items": [1, 2]}',
    failures: [{ attempt: 1 }],
  })
})

it('does not say the same error twice', async () => {
  await sql`insert into loopless.attempt (event_id, handler, attempt, began_at, ended_at, error_class, error_message, error_stack)
    select event_id, handler, 2, began_at, ended_at, error_class, error_message, error_stack from loopless.attempt`
  const { out } = await loopless('dead', 'show', ids[0] ?? '')
  expect(out.match(/not ours/g)).toHaveLength(1)
  expect(out).toMatch(/^Attempt 2, .*\n {2}the same error$/m)
})

it('redrives by ids, and says which were not there', async () => {
  expect(await loopless('dead', 'redrive', ids[0] ?? '')).toMatchObject({
    code: 0,
    out: 'Redrove 1 dead letter, due now.\n',
  })
  const again = await loopless('dead', 'redrive', ids[0] ?? '', ids[1] ?? '', '999', '--json')
  expect(again.code).toBe(1)
  expect(again.json()).toEqual({ redriven: 1, missing: [ids[0], '999'] })
  expect(again.err).toBe(`loopless: There is no dead letter ${ids[0]}, 999.\n`)
  expect(await sql`select reason from loopless.delivery`).toEqual([
    { reason: 'redriven' },
    { reason: 'redriven' },
  ])
})

it('redrives all, or all of an event or a handler', async () => {
  const redriven = async (...options: string[]) =>
    (await loopless('dead', 'redrive', '--json', ...options)).json()
  expect(await redriven('--handler', 'stock')).toEqual({ redriven: 0, missing: [] })
  expect(await redriven('--event', 'order.shipped')).toEqual({ redriven: 1, missing: [] })
  expect(await redriven('--all', '--event', 'invoice.*')).toEqual({ redriven: 0, missing: [] })
  expect(await redriven('--all')).toEqual({ redriven: 2, missing: [] })
})

it('redrives nothing unless told what', async () => {
  expect(await loopless('dead', 'redrive')).toMatchObject({
    code: 2,
    err: 'loopless: Say which dead letters: ids, --handler, --event, or --all.\n',
  })
  expect(await loopless('dead', 'redrive', '1', '--all')).toMatchObject({ code: 2 })
  expect(await sql`select count(*)::int as kept from loopless.dead_letter`).toEqual([{ kept: 3 }])
})

it('says that there is no such dead letter', async () => {
  expect(await loopless('dead', 'show', '999')).toMatchObject({
    code: 1,
    out: '',
    err: 'loopless: There is no dead letter 999: it was redriven, is too old, or never was.\n',
  })
})
