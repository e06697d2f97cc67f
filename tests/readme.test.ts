import { execFile } from 'node:child_process'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type TestDatabase, testDatabase } from './support/database.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = join(root, '.loopless', `readme-${process.pid}`)
const run = promisify(execFile)
/** As in a project that runs TypeScript by Node. */
const strict = {
  strict: true,
  target: 'ES2024',
  module: 'NodeNext',
  types: ['node'],
  allowImportingTsExtensions: true,
  erasableSyntaxOnly: true,
  noEmit: true,
  skipLibCheck: true,
}
let database: TestDatabase
let readme: string

beforeAll(async () => {
  database = await testDatabase()
  readme = await readFile(join(root, 'README.md'), 'utf8')
  for (const [path, code] of typescriptOf(readme)) {
    await mkdir(dirname(join(folder, path)), { recursive: true })
    // the sources instead of the build; tests/package.test.ts imports the package by its name
    await writeFile(join(folder, path), code.replaceAll("'loopless'", `'${join(root, 'src/index.ts')}'`))
  }
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions: strict }))
  await database.sql`create table orders (id integer primary key, quantity integer not null)`
  await database.sql`create table stock (reserved integer not null)`
  await database.sql`insert into stock values (0)`
})

afterAll(() => rm(folder, { recursive: true, force: true }))

/** Each block begins with a comment that names its file. */
function typescriptOf(markdown: string): [path: string, code: string][] {
  return blocks(markdown, 'ts').map((code) => {
    const path = /^\/\/ (\S+\.ts)\n/.exec(code)?.[1]
    if (path === undefined)
      throw new Error(`A TypeScript block of the README does not name its file:\n${code}`)
    return [path, code]
  })
}

function blocks(markdown: string, language: string): string[] {
  return [...markdown.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\`$`, 'gm'))].map(
    (match) => match[1] ?? '',
  )
}

async function node(code: string): Promise<string> {
  const file = join(folder, 'run.ts')
  await writeFile(file, code)
  const { stdout } = await run(process.execPath, [file], {
    env: { ...process.env, DATABASE_URL: database.url },
  })
  return stdout
}

test('its publishing, its handler and its poll function work together', async () => {
  await node(`await import('./publish.ts')`)
  for (const statement of (blocks(readme, 'sql')[0] ?? '')
    .split(/;\n/)
    .filter((text) => text.trim() !== '')) {
    await database.sql.unsafe(statement)
  }
  const output = await node(`
    const { handler } = await import('./poll.ts')
    console.log(JSON.stringify(await handler({}, { getRemainingTimeInMillis: () => 20_000 })))
    process.exit(0)`)

  expect(JSON.parse(output)).toMatchObject({ claimed: 2, succeeded: 2, retried: 0, dead: 0, drained: true })
  expect(await database.sql`select reserved from stock`).toEqual([{ reserved: 3 }])
  expect(await database.sql`select reason from loopless.delivery`).toEqual([{ reason: 'delayed' }])
})

test('its TypeScript is right by the types', async () => {
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  const stdout = await run(process.execPath, [tsc, '--project', folder]).then(
    (outcome) => outcome.stdout,
    (error: { stdout: string }) => error.stdout,
  )
  expect(stdout).toBe('')
})

test('its two commands are the ones that package.json has', async () => {
  const scripts = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')).scripts as Record<
    string,
    string
  >
  expect(blocks(readme, 'sh').map((text) => text.trim())).toEqual([
    'npm ci && npm start',
    'npm ci && npm test',
  ])
  expect(Object.keys(scripts)).toEqual(expect.arrayContaining(['start', 'test']))
})
