import { describe, expect, it } from 'vitest'
import { testDatabase } from '../../tests/support/database.ts'
import { as, testRoles } from '../../tests/support/roles.ts'
import { checkConnection } from './database-connection.ts'

const roles = testRoles()
const { url } = await testDatabase()

/** The URL with one part changed. */
function changed(part: 'pathname' | 'port', value: string): string {
  const other = new URL(url)
  other[part] = value
  return other.href
}

describe('checkConnection', () => {
  it('takes an owner who may do everything, and notes that nothing can wake the functions', async () => {
    expect(await checkConnection(url)).toEqual([
      { level: 'note', text: expect.stringContaining('aws_lambda is not available') },
    ])
  })

  it('gives the statement that an owner lacks', async () => {
    const role = await roles.make()
    const database = new URL(url).pathname.slice(1)
    expect(await checkConnection(as(role, url))).toContainEqual({
      level: 'error',
      text: expect.stringContaining(`grant create on database ${database} to ${role};`),
    })
  })

  it('says when the database refuses', async () => {
    expect(await checkConnection(changed('pathname', '/not_there'))).toEqual([
      {
        level: 'error',
        text: expect.stringMatching(/refused the URL of the owner: .*"not_there" does not exist/),
      },
    ])
  })

  it('does not fail because the database is out of reach from here', async () => {
    expect(await checkConnection(changed('port', '1'))).toEqual([
      { level: 'note', text: expect.stringContaining('could not be reached from here') },
    ])
  })
})
