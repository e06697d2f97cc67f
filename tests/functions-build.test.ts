import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { cp, mkdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { buildFunctions, buildPackage } from '../esbuild.config.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const valid = `
  import { defineHandler } from '../../../src/index.ts'
  export default defineHandler('order.placed', {}, () => {})
`

/** A folder of handlers in the project, whose names are relative to it. */
let folder: string
let handlers: string
beforeEach(async () => {
  folder = `.esbuild/build-${randomUUID()}`
  handlers = `${folder}/handlers`
  await mkdir(join(root, handlers), { recursive: true })
})
afterEach(() => rm(join(root, folder), { recursive: true, force: true }))

const write = (name: string, text: string): Promise<void> => writeFile(join(root, handlers, name), text)
const build = (): Promise<void> => buildFunctions({ handlers, outdir: `${folder}/functions` })

describe('the build', () => {
  it('makes every module of the folder a handler, by its file name, without looking for it at run time', async () => {
    await write('reserve-stock.ts', valid)
    await write('send-mail.ts', valid.replace('{}', `{ name: 'mail' }`))
    await write('send-mail.test.ts', 'throw new Error("a test is no handler")')
    await mkdir(join(root, handlers, 'parts'))
    await write('parts/price.ts', 'export const price = 1')
    await Promise.all([buildPackage(), build()])
    await rm(join(root, handlers), { recursive: true })

    const script = `import('./${folder}/functions/handlers.js')
      .then(({ handlers }) => console.log(handlers.handlers.map(({ name }) => name).join()))`
    const { stdout } = await promisify(execFile)(process.execPath, ['--eval', script], { cwd: root })
    expect(stdout.trim()).toBe('reserve-stock,mail')
  })

  it('bundles packages that are CommonJS and call require', async () => {
    await write('query.ts', `import 'pg'\n${valid}`)
    await build()
    const poll = join(root, folder, 'functions/poll.cjs')
    process.env['DATABASE_URL'] = 'postgres://nobody@127.0.0.1:1/nothing'
    expect(createRequire(import.meta.url)(poll)).toMatchObject({ handler: expect.any(Function) })
  })

  it('does not touch what it would write again as it is', async () => {
    await write('reserve-stock.ts', valid)
    await build()
    const path = join(root, folder, 'functions/maintain.cjs')
    const { ino, mtimeMs } = await stat(path)
    await build()
    expect(await stat(path)).toMatchObject({ ino, mtimeMs })
  })

  it('leaves what was built before when a handler is not valid', async () => {
    await write('reserve-stock.ts', valid)
    await build()
    const before = await readFile(join(root, folder, 'functions/poll.cjs'), 'utf8')
    await write('broken.ts', 'export default 1')
    await expect(build()).rejects.toThrow()
    expect(await readFile(join(root, folder, 'functions/poll.cjs'), 'utf8')).toBe(before)
  })

  it.each([
    ['exports nothing', 'export {}', 'it has no default export'],
    [
      'exports another thing',
      'export default async () => {}',
      'its default export is a function, not a handler',
    ],
    [
      'looks like a handler',
      'export default { pattern: "*", run() {} }',
      'its default export is an object, not a handler',
    ],
    ['throws', 'throw new TypeError("no luck")', 'loading it threw TypeError: no luck'],
    ['throws what is no error', 'throw 7', 'loading it threw 7'],
    ['ends the process', `${valid}\nprocess.exit(0)`, 'loading it ended the process'],
    [
      'has a wrong option',
      valid.replace('{}', '{ maxAttempts: 0 }'),
      'expected maxAttempts to be a whole number',
    ],
    ['does not parse', 'export default {', 'found end of file'],
    [
      'imports what is not there',
      `import './gone.ts'\n${valid}`,
      'it cannot be bundled: Could not resolve "./gone.ts"',
    ],
    ['awaits at its top', `await 1\n${valid}`, 'it cannot be bundled: Top-level await'],
  ])('fails with the path of a module that %s', async (_, text, why) => {
    await write('reserve-stock.ts', valid)
    await write('the-broken-one.ts', text)
    const error = await build().catch(String)
    expect(error).toContain(`${handlers}/the-broken-one.ts: `)
    expect(error).toContain(why)
    expect(error).not.toContain('reserve-stock')
  })

  it('does not wait for what a module leaves running', async () => {
    await write('reserve-stock.ts', `setInterval(() => {}, 1000)\n${valid}`)
    await build()
  })

  it('fails with the paths of two modules that have one name', async () => {
    await write('reserve-stock.ts', valid)
    await write('zzz.ts', valid.replace('{}', `{ name: 'reserve-stock' }`))
    await expect(build()).rejects.toThrow(
      `${handlers}/zzz.ts: its name "reserve-stock" is that of ${handlers}/reserve-stock.ts too`,
    )
  })

  it('names all that is wrong at once', async () => {
    await write('one.ts', 'export {}')
    await write('two.ts', 'throw 1')
    await expect(build()).rejects.toThrow(/one\.ts: it has no default export\n.*two\.ts: loading it threw 1$/)
  })

  it('fails with the path of a module that would be passed over', async () => {
    await write('old.js', 'module.exports = 1')
    await expect(build()).rejects.toThrow(`${handlers}/old.js: handlers are .ts files`)
  })
})

describe('npm run check:handlers', () => {
  it('fails with the path and the reason, and says nothing else', async () => {
    const copy = join(root, folder, 'copy')
    await mkdir(join(copy, 'functions/handlers'), { recursive: true })
    for (const name of ['esbuild.config.mjs', 'package.json', 'src', 'infra']) {
      await cp(join(root, name), join(copy, name), { recursive: true })
    }
    await symlink(join(root, 'node_modules'), join(copy, 'node_modules'))
    await writeFile(join(copy, 'functions/handlers/reserve-stock.ts'), 'export default 1')
    const run = promisify(execFile)('npm', ['run', '--silent', 'check:handlers'], { cwd: copy })
    await expect(run).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^Expected each module .*\n {2}functions\/handlers\/reserve-stock\.ts: its default export is a number, not a handler\n$/,
      ),
    })
  })
})
