import { setTimeout } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { installAwsLambda } from '../infra/local/aws-lambda.ts'
import { type Bridge, type BridgeOptions, startBridge } from '../infra/local/bridge.ts'
import { nameOf } from '../infra/local/lambda.ts'
import { migrate } from '../src/db/migrate.ts'
import { connect, type Sql } from '../src/index.ts'
import { testDatabase } from './support/database.ts'
import { type Lambda, startLambda } from './support/lambda.ts'
import { startServer } from './support/server.ts'

const { sql, url } = await testDatabase()
const arn = 'arn:aws:lambda:eu-central-1:123456789012:function:shop-wake'
const wake = '{"loopless":"wake"}'

let lambda: Lambda
let bridges: Bridge[] = []
let errors: unknown[] = []
beforeEach(async () => {
  await installAwsLambda(sql, 'at the commit')
  await sql`select loopless.unset_wake()`
  lambda = await startLambda()
  errors = []
})
afterEach(async () => {
  await Promise.all(bridges.map((bridge) => bridge.stop()))
  bridges = []
  await lambda.close()
})

async function start(options: Partial<BridgeOptions> = {}): Promise<Bridge> {
  const bridge = await startBridge({
    databaseUrl: url,
    endpoint: lambda.url,
    onError: (error) => errors.push(error),
    ...options,
  })
  bridges.push(bridge)
  return bridge
}

/** Starts one with a target, and lets the poller that it wakes as it begins go idle. */
async function startIdle(functionName: string): Promise<Bridge> {
  await sql`select loopless.set_wake(now(), ${functionName})`
  const bridge = await start()
  await vi.waitFor(() => expect(bridge.accepted.wakes).toBe(1), wait)
  await goIdle()
  lambda.invocations.length = 0
  return bridge
}

const publish = (): Promise<unknown> => sql`select loopless.publish('order.placed', '{}')`

/** Says that the poller that was woken has gone idle. */
const goIdle = (): Promise<unknown> => sql`select loopless.mark_awake(0)`

const invoke = (functionName: string, payload: object): Promise<unknown> =>
  sql`select aws_lambda.invoke(${functionName}, ${JSON.stringify(payload)}::text::json, null, 'Event')`

const functionsInvoked = (): string[] => lambda.invocations.map(({ functionName }) => functionName)

const wait = { timeout: 30_000, interval: 5 }

describe('the bridge', () => {
  it('invokes what was asked for at the commit, to the letter', async () => {
    await start()
    await sql`
      select aws_lambda.invoke(${arn}, '{"a":  "é"}'::json, null, 'Event', 'None', '{"custom": {"b": 1}}', 'live')`
    await vi.waitFor(() => expect(lambda.invocations).toHaveLength(1), wait)
    expect(lambda.invocations).toEqual([
      {
        functionName: arn,
        region: 'eu-central-1',
        qualifier: 'live',
        invocationType: 'Event',
        logType: undefined,
        context: '{"custom": {"b": 1}}',
        payload: '{"a":  "é"}',
      },
    ])
  })

  it('cuts an ARN down to the name where only names are known', async () => {
    const bridge = await start({ namesOnly: true })
    await invoke(arn, {})
    await vi.waitFor(() => expect(bridge.accepted.others).toBe(1), wait)
    expect(functionsInvoked()).toEqual(['shop-wake'])
    expect(['shop', 'shop:live', '123456789012:function:shop', `${arn}:live`].map(nameOf)).toEqual([
      'shop',
      'shop',
      'shop',
      'shop-wake',
    ])
  })

  it('wakes a poller once for a burst, and again once it has gone idle', async () => {
    const bridge = await startIdle(arn)
    lambda.answer(async () => {
      await sql`select loopless.mark_awake(3600000)` // the poller, however slowly it starts
      return { status: 202 }
    })
    await Promise.all(Array.from({ length: 100 }, () => publish()))
    // Notifications come in order: with the last, everything before it is there.
    await invoke('last', {})
    await vi.waitFor(() => expect(functionsInvoked()).toContain('last'), wait)
    await vi.waitFor(() => expect(bridge.accepted.others).toBe(1), wait)
    const { wakes } = bridge.accepted
    expect(wakes).toBeGreaterThanOrEqual(1)
    expect(wakes).toBeLessThanOrEqual(5)

    await goIdle()
    await publish()
    await vi.waitFor(() => expect(bridge.accepted.wakes).toBe(wakes + 1), wait)
    expect(lambda.invocations.at(-1)).toMatchObject({
      functionName: arn,
      invocationType: 'Event',
      payload: wake,
    })
  })

  it('wakes nobody for a publisher that rolls back', async () => {
    await startIdle('wake')
    const failing = sql.begin(async (tx) => {
      await tx`select loopless.publish('order.placed', '{}')`
      throw new Error('rolled back')
    })
    await expect(failing).rejects.toThrow('rolled back')
    await invoke('last', {})
    await vi.waitFor(() => expect(functionsInvoked()).toEqual(['last']), wait)
  })

  it('wakes a poller as it begins: nobody knows what was missed', async () => {
    await sql`select loopless.set_wake(now(), 'wake')`
    await start()
    await vi.waitFor(() => expect(functionsInvoked()).toEqual(['wake']), wait)
  })

  it('wakes a poller at the earliest time that it was given, unless one is awake then', async () => {
    const bridge = await startIdle('wake')
    bridge.wakeAt(new Date(Date.now() + 3_600_000))
    bridge.wakeAt(new Date())
    await vi.waitFor(() => expect(functionsInvoked()).toEqual(['wake']), wait)

    await sql`select loopless.mark_awake(3600000)`
    bridge.wakeAt(new Date(0))
    await setTimeout(5) // a later timer than that
    await bridge.stop()
    expect(functionsInvoked()).toEqual(['wake'])
  })

  it('goes on when Lambda refuses, fails or is gone, and says so', async () => {
    const bridge = await start()
    lambda.answer(({ functionName }) => ({
      status: functionName === 'known' ? 202 : 404,
      body: '{"Message":"Function not found"}',
    }))
    await invoke('unknown', {})
    await sql`select pg_notify('aws_lambda', 'no json')`
    await sql`select pg_notify('aws_lambda', 'null')`
    await invoke('known', {})
    await vi.waitFor(() => expect(bridge.accepted.others).toBe(1), wait)
    await vi.waitFor(() => expect(errors).toHaveLength(3), wait)
    expect(errors.map(String).toSorted()).toEqual([
      expect.stringContaining('Expected an invocation on the channel aws_lambda, got no json'),
      expect.stringContaining('Expected an invocation on the channel aws_lambda, got null'),
      expect.stringContaining('Function not found'),
    ])
  })

  it('has no more requests under way than it may', async () => {
    let running = 0
    let most = 0
    lambda.answer(async () => {
      most = Math.max(most, ++running)
      await new Promise(setImmediate)
      running--
      return { status: 202 }
    })
    const bridge = await start({ concurrency: 3 })
    await Promise.all(Array.from({ length: 60 }, (_, n) => invoke('wake', { n })))
    await vi.waitFor(() => expect(bridge.accepted.others).toBe(60), wait)
    expect(most).toBeLessThanOrEqual(3)
  })

  it('says at once that the database cannot be reached', async () => {
    await expect(start({ databaseUrl: 'postgres://postgres@127.0.0.1:1/x' })).rejects.toThrow('ECONNREFUSED')
  })
})

describe('the bridge of a server that restarts', () => {
  it('listens again by itself, and wakes a poller for what it missed', async () => {
    const server = await startServer()
    const own: Sql = connect(server.url)
    try {
      await migrate(own)
      await installAwsLambda(own, 'at the commit')
      await own`select loopless.set_wake(now(), 'wake')`
      const bridge = await start({ databaseUrl: server.url })
      await vi.waitFor(() => expect(bridge.accepted.wakes).toBe(1), wait)
      await server.crash()
      await server.start()
      await vi.waitFor(() => expect(bridge.accepted.wakes).toBeGreaterThan(1), wait)
      const { wakes } = bridge.accepted
      await own`select loopless.mark_awake(0)`
      await own`select loopless.publish('order.placed', '{}')`
      await vi.waitFor(() => expect(bridge.accepted.wakes).toBeGreaterThan(wakes), wait)
      await bridge.stop()
    } finally {
      await own.end({ timeout: 1 })
      await server.destroy()
    }
  })
})
