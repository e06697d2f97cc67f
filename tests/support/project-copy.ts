import { cp, mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'
import { project } from '../../infra/local/home.ts'

const files = [
  'esbuild.config.mjs',
  'functions',
  'infra',
  'package.json',
  'serverless.yml',
  'src',
  'tsconfig.json',
]

/** Copies what a deployment is made of, for the calling test file; returns the folder, which is removed at the end. */
export async function copyProject(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), `loopless-deployment-${process.pid}-`))
  afterAll(() => rm(directory, { recursive: true, force: true, maxRetries: 5 }))
  for (const name of files) await cp(join(project, name), join(directory, name), { recursive: true })
  await symlink(join(project, 'node_modules'), join(directory, 'node_modules'))
  return directory
}
