// npm run check:infra: packages every kind of deployment and has cfn-lint and checkov read the templates.

import { spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { home, project } from '../local/home.ts'
import { pythonPrograms } from './python.ts'
import { packageVariant, type Variant, variants } from './variants.ts'

const programs = pythonPrograms('lint', join(import.meta.dirname, 'requirements.txt'))
const folder = join(home, 'templates')
mkdirSync(folder, { recursive: true })

const templates: string[] = []
for (const variant of Object.keys(variants) as Variant[]) {
  templates.push(await packageVariant(variant, join(folder, variant)))
}
const rules = (name: string): string => join(import.meta.dirname, name)
const isClean = [
  run('cfn-lint', ['--config-file', rules('cfn-lint.yml'), '--regions', 'eu-central-1', '-t', ...templates]),
  run('checkov', ['--config-file', rules('checkov.yml'), ...templates.flatMap((path) => ['--file', path])]),
].every(Boolean)
if (!isClean) process.exitCode = 1

function run(program: string, args: string[]): boolean {
  const { status, error } = spawnSync(join(programs, program), args, { cwd: project, stdio: 'inherit' })
  if (error) throw error
  return status === 0
}
