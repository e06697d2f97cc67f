import { execFile } from 'node:child_process'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { connect } from '../src/index.ts'
import { type Bench, compare, type Figure } from './figure.ts'

const run = promisify(execFile)
/** Short and many: what the disk and the machine do changes within seconds, by more than what is measured. */
const seconds = 2
const turnsPerRound = 3
const script = `begin;
select loopless.publish('bench.cost', '{"orderId": 1}'::json);
end;
`

/** What the trigger costs publishers, by pgbench with 8 of them: against the same without the trigger. */
export async function* publisherCost({ server, rounds }: Bench): AsyncIterable<Figure> {
  const pgbench = await findPgbench()
  if (pgbench === undefined) {
    console.error(
      'pgbench is not on this machine (Debian: postgresql-contrib): what publishers pay was not measured.',
    )
    return
  }
  const url = await server.createDatabase('bench_cost')
  const sql = connect(url)
  const directory = await mkdtemp(join(tmpdir(), 'loopless-pgbench-'))
  const file = join(directory, 'publish.sql')
  await writeFile(file, script)
  const rate = async (): Promise<number> => {
    await sql`truncate loopless.event`
    const { stdout } = await run(pgbench, [
      '--no-vacuum',
      '--client=8',
      '--jobs=2',
      `--time=${seconds}`,
      '--protocol=prepared',
      `--file=${file}`,
      url,
    ])
    return Number(/tps = ([\d.]+)/.exec(stdout)?.[1])
  }
  const without = async (): Promise<number> => {
    await sql`alter table loopless.event disable trigger wake_on_publish`
    return rate()
  }
  const withTrigger = (prepare: () => Promise<unknown>) => async (): Promise<number> => {
    await sql`alter table loopless.event enable trigger wake_on_publish`
    await prepare()
    return rate()
  }
  const setTarget = () => sql`select loopless.set_wake(now(), 'nobody')`
  const states = [
    {
      what: 'a poller awake',
      prepare: async () => {
        await setTarget()
        await sql`select loopless.mark_awake(600000)`
      },
      target: { atLeast: 0.9 },
    },
    { what: 'no function set', prepare: () => sql`select loopless.unset_wake()`, target: null },
    // no extension is here: each wake is tried, fails and is recorded, and the mark goes ahead for 5 s
    { what: 'nobody awake, a wake each 5 s', prepare: setTarget, target: null },
  ]
  for (const { what, prepare, target } of states) {
    const measured = await compare(turnsPerRound * rounds, withTrigger(prepare), without)
    yield { what: `publish, ${what}, against no trigger (pgbench)`, ...measured, unit: 'events/s', target }
  }
  await sql.end()
  await rm(directory, { recursive: true })
}

async function findPgbench(): Promise<string | undefined> {
  const versions = await readdir('/usr/lib/postgresql').catch(() => [])
  const candidates = ['pgbench', ...versions.map((version) => `/usr/lib/postgresql/${version}/bin/pgbench`)]
  for (const candidate of candidates) {
    const isThere = await run(candidate, ['--version']).then(
      () => true,
      () => false,
    )
    if (isThere) return candidate
  }
  return undefined
}
