import { randomUUID } from 'node:crypto'
import { afterAll, inject } from 'vitest'
import type { RoleNames, Sql } from '../../src/index.ts'
import { withSession } from './session.ts'

const password = 'secret'

/** Roles belong to the server, which test files share: each makes its own and drops them. */
export interface TestRoles {
  /** Names of no role yet, for the parts of a bus. */
  readonly names: RoleNames
  /** Makes a role that can log in; returns its name. */
  make(): Promise<string>
  /** Lets roles in by password, where the server asks for one. */
  letIn(...names: string[]): Promise<void>
}

/**
 * Call it at the top level of a test file, before the databases that these roles get rights in: what is made first is
 * dropped last.
 */
export function testRoles(): TestRoles {
  const prefix = `role_${randomUUID().slice(0, 8)}`
  afterAll(() =>
    withSession(inject('serverUrl'), async (sql) => {
      const roles = await sql<{ rolname: string }[]>`
        select rolname from pg_roles where starts_with(rolname, ${prefix})`
      for (const { rolname } of roles) {
        await sql`drop owned by ${sql(rolname)}`
        await sql`drop role ${sql(rolname)}`
      }
    }),
  )
  const onServer = (run: (sql: Sql) => Promise<unknown>): Promise<unknown> =>
    withSession(inject('serverUrl'), run)
  let made = 0
  const roles: TestRoles = {
    names: { publisher: `${prefix}_publisher`, poller: `${prefix}_poller`, viewer: `${prefix}_viewer` },
    async make() {
      const name = `${prefix}_${++made}`
      await onServer((sql) => sql`create role ${sql(name)} login`)
      await roles.letIn(name)
      return name
    },
    async letIn(...names) {
      for (const name of names)
        await onServer((sql) => sql.unsafe(`alter role ${name} password '${password}'`))
    },
  }
  return roles
}

/** The same database, as another role. */
export function as(role: string, url: string): string {
  const other = new URL(url)
  other.username = role
  other.password = password
  return other.href
}
