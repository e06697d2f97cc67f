import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it, vi } from 'vitest'
import { project } from '../../infra/local/home.ts'
import { migrate, readMigrations } from '../../src/db/migrate.ts'
import { testDatabase } from '../support/database.ts'
import { newDeployment } from '../support/deployment.ts'
import { seenByFunctions } from '../support/seen-by-functions.ts'
import { signedWebhook } from '../support/signed-webhook.ts'

const secret = 'the secret of a test'
/** For what is awaited; only what is broken takes so long. */
const patience = { timeout: 240_000, interval: 500 }

const { url, sql } = await testDatabase('template0')
await sql`create table handled (event_id bigint not null, version text not null)`
const deployment = await newDeployment({ databaseUrl: seenByFunctions(url), githubWebhookSecret: secret })

it('brings an old schema, with what waits in it, to the version of the code', async () => {
  const migrations = readMigrations()
  await migrate(sql, migrations.slice(0, 5)) // as before waking
  const ids = [await publish('github.star'), await publish('github.star')]
  await deployment.write('functions/handlers/version.ts', handler('github.*', 'one'))
  await deployment.deploy()
  expect(await sql`select name from loopless.schema_migration order by version`).toEqual(
    migrations.map(({ name }) => ({ name })),
  )
  await deployment.invoke('poll')
  expect(await handledBy(ids)).toEqual(['one', 'one'])
})

it('misses nothing, old or new, while a new version is deployed that has a new kind of event', async () => {
  const publishing = whileRunning(async () => {
    await deployment.post('github-webhook', signedWebhook('star', {}, secret))
  })
  const polling = whileRunning(async () => {
    await deployment.invoke('poll')
  })
  await vi.waitFor(async () => expect(await count('github.star')).toBeGreaterThan(10), patience)

  const webhook = 'functions/github-webhook.ts'
  const text = await readFile(join(project, webhook), 'utf8')
  const changed = text.replace('defineEvent(name)', "defineEvent('audit.' + name)")
  expect(changed).not.toBe(text)
  await deployment.write(webhook, changed)
  await deployment.write('functions/handlers/audit.ts', handler('audit.*', 'audit'))
  await deployment.write('functions/handlers/version.ts', handler('github.*', 'two'))
  await deployment.deploy()

  await vi.waitFor(async () => expect(await count('audit.github.star')).toBeGreaterThan(10), patience)
  await publishing.stop()
  const last = await publish('github.star')
  await vi.waitFor(async () => expect(await unhandled()).toBe(0), patience)
  await polling.stop()
  expect(await handledBy([last])).toEqual(['two'])
  const [row] = await sql`
    select
      count(*) - count(distinct event_id) as repeats,
      count(*) filter (where (version = 'audit') <> (name like 'audit.%')) as mistaken
    from handled join loopless.event e on e.id = event_id`
  expect(row).toEqual({ repeats: '0', mistaken: '0' })
})

it('leaves the old version at work when its migration fails', async () => {
  const number = String(readMigrations().length + 1).padStart(4, '0')
  await deployment.write(`infra/migrations/${number}_divide_by_zero.sql`, 'select 1 / 0;')
  await deployment.write('functions/handlers/version.ts', handler('github.*', 'three'))
  await expect(deployment.deploy()).rejects.toThrow('division by zero')
  const id = await publish('github.star')
  await vi.waitFor(async () => {
    await deployment.invoke('poll')
    expect(await handledBy([id])).toEqual(['two'])
  }, patience)
  // On AWS the stack is rolled back and can be deployed again. LocalStack leaves it in pieces.
})

/** A transactional handler that writes which version of it has handled an event. */
function handler(pattern: string, version: string): string {
  return `
    import { defineHandler } from '../../src/index.ts'
    export default defineHandler('${pattern}', { transactional: true }, async ({ id }, { tx }) => {
      await tx\`insert into handled (event_id, version) values (\${id}, '${version}')\`
    })`
}

async function publish(name: string): Promise<string> {
  const [row] = await sql<{ id: string }[]>`select loopless.publish(${name}, '{}') as id`
  return row?.id ?? ''
}

/** Does something again and again, also when it fails, as it may while functions are updated. */
function whileRunning(act: () => Promise<void>): { stop(): Promise<void> } {
  let isStopped = false
  const running = (async () => {
    while (!isStopped) {
      await act().catch(() => {})
      await sleep(10) // leaves the deployment its share of this machine
    }
  })()
  return {
    stop: async () => {
      isStopped = true
      await running
    },
  }
}

async function handledBy(ids: string[]): Promise<string[]> {
  const rows = await sql<{ version: string }[]>`
    select version from handled where event_id = any(${ids}::bigint[]) order by event_id`
  return rows.map(({ version }) => version)
}

async function count(name: string): Promise<number> {
  return (await sql`select from loopless.event where name = ${name}`).length
}

async function unhandled(): Promise<number> {
  return (
    await sql`select from loopless.event e where not exists (select from handled h where h.event_id = e.id)`
  ).length
}
