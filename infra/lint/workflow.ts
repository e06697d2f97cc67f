// npm run check:workflow: actionlint reads the workflows, and LocalStack's service container is told what
// infra/localstack/ tells its own.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { project } from '../local/home.ts'
import { image, settings } from '../localstack/localstack.ts'

const actionlint = 'github.com/rhysd/actionlint/cmd/actionlint@v1.7.12'

const { status, error } = spawnSync('go', ['run', actionlint], { cwd: project, stdio: 'inherit' })
if (error) throw new Error(`Cannot run actionlint: it needs Go. (${error.message})`, { cause: error })

const workflow = readFileSync(join(project, '.github/workflows/ci.yml'), 'utf8')
const expected = [
  `image: ${image}`,
  ...Object.entries(settings).map(([name, value]) => `${name}: ${quoted(value)}`),
]
const missing = expected.filter((line) => !workflow.includes(`  ${line}\n`))
for (const line of missing) {
  console.error(`.github/workflows/ci.yml: expected the service container localstack to have "${line}".`)
}
if (status !== 0 || missing.length > 0) process.exitCode = 1

/** As in YAML, where a number is none of ours. */
function quoted(value: string): string {
  return /^\d+$/.test(value) ? `'${value}'` : value
}
