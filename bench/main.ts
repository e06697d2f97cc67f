// npm run bench [-- NAME…] [--rounds N] [--json]: measures on a Postgres of its own, with fsync.
import { parseArgs } from 'node:util'
import { bundling } from './bundle.ts'
import { backlog, draining, heldSnapshot } from './drain.ts'
import { type Benchmark, type Figure, isReached, type Target } from './figure.ts'
import { publishing } from './publish.ts'
import { startBenchServer } from './server.ts'
import { transactional } from './transactional.ts'
import { waking } from './wake.ts'

const benchmarks: Record<string, Benchmark> = {
  publish: publishing,
  drain: draining,
  transactional,
  held: heldSnapshot,
  backlog,
  wake: waking,
  bundle: bundling,
}

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean', default: false }, rounds: { type: 'string', default: '3' } },
})
const rounds = Number(options.rounds)
const unknown = positionals.find((name) => !(name in benchmarks))
if (unknown !== undefined || !Number.isInteger(rounds) || rounds < 1) {
  console.error(
    unknown === undefined
      ? `Expected --rounds to be a whole number from 1, got ${options.rounds}.`
      : `There is no benchmark ${unknown}: choose of ${Object.keys(benchmarks).join(', ')}.`,
  )
  process.exit(2)
}

const server = await startBenchServer()
const figures: Figure[] = []
if (!options.json) console.log(heading())
for (const [name, benchmark] of Object.entries(benchmarks)) {
  if (positionals.length > 0 && !positionals.includes(name)) continue
  for await (const figure of benchmark({ server, rounds })) {
    figures.push(figure)
    if (!options.json) console.log(line(figure))
  }
}
await server.stop()
if (options.json) console.log(JSON.stringify(figures, null, 2))

function heading(): string {
  const what = `Medians of ${rounds} rounds, in turn with what is done by hand`
  return `\n${what.padEnd(70)}${'measured'.padStart(12)}${'by hand'.padStart(12)}${'ratio'.padStart(7)}  to reach`
}

function line(figure: Figure): string {
  const { what, value, unit, peer, ratio, target } = figure
  const reached = isReached(figure)
  const verdict = reached === null ? '' : reached ? '✓' : '✗ not reached'
  const withUnit = (number: number): string =>
    `${format(number)} ${unit === 'events/s' ? '/s' : unit}`.trimEnd()
  const measured = withUnit(value)
  const hand = peer === null ? '' : withUnit(peer)
  return `${what.padEnd(70)}${measured.padStart(12)}${hand.padStart(12)}${(ratio?.toFixed(2) ?? '').padStart(7)}  ${boundOf(target)} ${verdict}`.trimEnd()
}

function boundOf(target: Target | null): string {
  if (target === null) return ''
  return target.atLeast === undefined ? `≤ ${target.atMost}` : `≥ ${Number(target.atLeast.toFixed(2))}`
}

function format(value: number): string {
  if (Number.isInteger(value) && value < 100) return String(value)
  if (value >= 100) return Math.round(value).toLocaleString('en-US')
  return value.toFixed(value < 2 ? 2 : 1)
}
