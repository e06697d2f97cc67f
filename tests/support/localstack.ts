import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { TestProject } from 'vitest/node'
import { freePort } from '../../infra/local/postgres-server.ts'
import { findProcess } from '../../infra/local/processes.ts'
import { startLocalStack } from '../../infra/localstack/localstack.ts'

const startTimeoutMs = 120_000

/** Before the tests: a fresh LocalStack, or the one at AWS_ENDPOINT_URL. The returned function undoes it. */
export default async function setUp(project: TestProject): Promise<() => Promise<void>> {
  await removeLeftovers()
  const given = process.env['AWS_ENDPOINT_URL']
  if (given) {
    await becomeReady(given)
    project.provide('awsUrl', given)
    return async () => {}
  }
  // vitest ends without its teardown on a signal: the exit of this process ends LocalStack.
  process.once('SIGTERM', () => process.exit(143))
  const directory = await mkdtemp(join(tmpdir(), `loopless-localstack-${process.pid}-`))
  const remove = (): Promise<void> => rm(directory, { recursive: true, force: true, maxRetries: 5 })
  try {
    const localStack = await startLocalStack({
      port: await freePort(),
      directory,
      onProgress: (text) => console.log(text),
    })
    console.log(`${localStack.name}, ${localStack.url}`)
    project.provide('awsUrl', localStack.url)
    return async () => {
      await localStack.stop()
      await remove()
    }
  } catch (error) {
    await remove()
    throw error
  }
}

async function becomeReady(url: string): Promise<void> {
  const deadline = performance.now() + startTimeoutMs
  while (performance.now() < deadline) {
    const isUp = await fetch(`${url}/_localstack/health`).then(
      (response) => response.ok,
      () => false,
    )
    if (isUp) return
    await sleep(200)
  }
  throw new Error(`Expected LocalStack at ${url} (AWS_ENDPOINT_URL): it does not answer.`)
}

/** Removes the files of earlier runs that were killed before they could do it. What they had started ended with them. */
async function removeLeftovers(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    const pid = /^loopless-(?:localstack|deployment)-(\d+)-/.exec(name)?.[1]
    if (!pid || findProcess(Number(pid))) continue
    await rm(join(tmpdir(), name), { recursive: true, force: true })
  }
}
