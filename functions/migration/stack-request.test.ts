import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { afterAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { answering, isStackRequest, type StackRequest, type StackWork } from './stack-request.ts'
import type { UpgradeReport } from './upgrade.ts'

interface Put {
  method: string | undefined
  contentType: string | undefined
  body: string
}

/** What is done to the next requests: a status, or the connection is cut. Then 200. */
let verdicts: (number | 'cut' | 'hold')[] = []
let puts: Put[] = []
const bucket = createServer(async (request, response) => {
  const verdict = verdicts.shift() ?? 200
  if (verdict === 'cut') {
    request.destroy()
    return
  }
  puts.push({
    method: request.method,
    contentType: request.headers['content-type'],
    body: await text(request),
  })
  if (verdict !== 'hold') response.writeHead(verdict).end()
})
bucket.listen(0, '127.0.0.1')
await once(bucket, 'listening')
afterAll(() => {
  bucket.closeAllConnections()
  bucket.close()
})

const common = {
  ResponseURL: `http://127.0.0.1:${(bucket.address() as AddressInfo).port}/answer?signature=abc`,
  StackId: 'arn:aws:cloudformation:eu-central-1:123456789012:stack/loopless-production/abc',
  RequestId: 'a request',
  LogicalResourceId: 'Migration',
  ResourceType: 'Custom::LooplessMigration',
  ServiceToken: 'arn:aws:lambda:eu-central-1:123456789012:function:loopless-production-migrate',
  ResourceProperties: { ServiceToken: '' },
}
const create: StackRequest = { ...common, RequestType: 'Create' }
const update: StackRequest = {
  ...common,
  RequestType: 'Update',
  PhysicalResourceId: 'loopless',
  OldResourceProperties: { ServiceToken: '' },
}
const remove: StackRequest = { ...common, RequestType: 'Delete', PhysicalResourceId: 'loopless' }

const report: UpgradeReport = {
  schemaVersion: '0007_create_role',
  applied: [],
  handlerSet: 'abc',
  handlers: [],
  roles: [],
  wake: 'off',
}
const work = (upgrade: StackWork['upgrade']): StackWork => ({
  upgrade,
  retire: () => Promise.reject(new Error('Not asked for.')),
})
const soon = () => performance.now() + 60_000
const echoed = {
  StackId: common.StackId,
  RequestId: 'a request',
  LogicalResourceId: 'Migration',
  PhysicalResourceId: 'loopless',
}
const answer = () => JSON.parse(puts.at(-1)?.body ?? '')

beforeEach(() => {
  verdicts = []
  puts = []
  vi.spyOn(console, 'error').mockReturnValue()
})

describe('answering', () => {
  it.each([create, update])(
    'answers $RequestType with what the database has, in the form that was signed',
    async (request) => {
      await answering(
        request,
        soon(),
        work(async () => report),
      )
      expect(puts).toEqual([{ method: 'PUT', contentType: undefined, body: expect.any(String) }])
      expect(answer()).toEqual({
        ...echoed,
        Status: 'SUCCESS',
        Data: { SchemaVersion: '0007_create_role', HandlerSet: 'abc' },
      })
    },
  )

  it('answers that it failed, and why', async () => {
    await answering(
      update,
      soon(),
      work(() => Promise.reject(new Error('It failed. Do this.'))),
    )
    expect(answer()).toEqual({ ...echoed, Status: 'FAILED', Reason: 'It failed. Do this.' })
  })

  it('carries out Delete by its own work', async () => {
    const retire = vi.fn(async () => {})
    await answering(remove, soon(), { upgrade: () => Promise.reject(new Error('Not asked for.')), retire })
    expect(retire).toHaveBeenCalledOnce()
    expect(answer()).toMatchObject({ ...echoed, Status: 'SUCCESS' })
    expect(console.error).not.toHaveBeenCalled()
  })

  it('does not hold up Delete by what failed, and logs it', async () => {
    const failure = new Error('There is no such database.')
    await answering(remove, soon(), { upgrade: async () => report, retire: () => Promise.reject(failure) })
    expect(answer()).toMatchObject({ ...echoed, Status: 'SUCCESS' })
    expect(console.error).toHaveBeenCalledWith(failure)
  })

  it.each(['x', '"', 'é', '😀', '\u0001', '\ud800'])(
    'keeps an answer with many %j within 4,096 bytes',
    async (character) => {
      await answering(
        create,
        soon(),
        work(() => Promise.reject(new Error(`Why: ${character.repeat(9_000)}`))),
      )
      const { body } = puts[0] ?? { body: '' }
      expect(Buffer.byteLength(body)).toBeLessThanOrEqual(4_096)
      expect(Buffer.byteLength(body)).toBeGreaterThan(3_000)
      expect(answer()).toMatchObject({ Status: 'FAILED', Reason: expect.stringMatching(/^Why: .*…$/su) })
    },
  )

  it('tries again when the answer is not taken', async () => {
    verdicts = [503, 'cut', 403]
    await answering(
      create,
      soon(),
      work(async () => report),
    )
    expect(answer()).toMatchObject({ Status: 'SUCCESS' })
    expect(verdicts).toEqual([])
  })

  it('tries again when taking the answer takes too long', async () => {
    verdicts = ['hold']
    await answering(
      create,
      soon(),
      work(async () => report),
    )
    expect(puts).toHaveLength(2)
  })

  it('throws when nobody takes the answer before the invocation ends, and says it all', async () => {
    verdicts = Array.from({ length: 100 }, () => 500)
    await expect(
      answering(
        create,
        performance.now() + 1_500,
        work(async () => report),
      ),
    ).rejects.toThrow(
      /^CloudFormation got no answer \(status 500\): a function in a VPC reaches it through a gateway endpoint for S3\. The answer was: \{/,
    )
  })

  it('has the work end 15 s before the invocation', async () => {
    await answering(
      create,
      performance.now() + 15_050,
      work((signal) => {
        return new Promise((_, reject) => {
          signal.addEventListener('abort', () => reject(new Error('Given up.')))
        })
      }),
    )
    expect(answer()).toMatchObject({ Status: 'FAILED', Reason: 'Given up.' })
  })
})

describe('isStackRequest', () => {
  it('tells a request of CloudFormation from an invocation by hand', () => {
    expect(isStackRequest(create)).toBe(true)
    for (const event of [undefined, null, '', {}, { RequestType: 'Create' }])
      expect(isStackRequest(event)).toBe(false)
  })
})
