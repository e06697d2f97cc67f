import { beforeEach, describe, expect, it } from 'vitest'
import { commandLine } from '../../tests/support/cli.ts'
import { testDatabase } from '../../tests/support/database.ts'

const { sql, url } = await testDatabase()
const loopless = commandLine(url)
const arn = 'arn:aws:lambda:eu-central-1:123456789012:function:shop-wake'

beforeEach(async () => {
  await sql`select loopless.unset_wake(), loopless.mark_awake(0)`
  await sql`truncate loopless.wake_failure`
  await sql`alter sequence loopless.wake_count restart`
  await sql`drop schema if exists aws_lambda, aws_commons cascade`
})

/**
 * The extension as far as the command goes: its invoke does what `body` says. The stand-ins in infra/ are tested with
 * the command in tests/.
 */
async function makeExtension(body: string): Promise<void> {
  await sql.unsafe(`
    create schema aws_commons;
    create schema aws_lambda;
    create type aws_commons._lambda_function_arn_1 as (function_name text, region text);
    create function aws_commons.create_lambda_function_arn(text, text) returns aws_commons._lambda_function_arn_1
    language sql as $$ select row($1, $2)::aws_commons._lambda_function_arn_1 $$;
    create function aws_lambda.invoke(
      function_name aws_commons._lambda_function_arn_1, payload json, invocation_type text, out status_code integer
    ) language plpgsql as $$ begin ${body} end $$`)
}

const failing = (detail: string): string => `raise exception 'invoke API failed' using detail = '${detail}';`

const target = () => sql`select function_arn, region, timeout_ms from loopless.wake_target`

async function wakeStatus(): Promise<unknown> {
  return ((await loopless('status', '--json')).json() as { wake: unknown }).wake
}

describe('wake set', () => {
  it('sets the function, in place of another', async () => {
    await loopless('wake', 'set', '--function', 'shop-wake', '--region', 'us-east-1', '--timeout-ms', '250')
    expect(await target()).toEqual([{ function_arn: 'shop-wake', region: 'us-east-1', timeout_ms: 250 }])
    const { code, out, err } = await loopless('wake', 'set', '--function', arn)
    expect({ code, err }).toEqual({ code: 0, err: '' })
    expect(out).toBe('A publish invokes it when no poller is awake.\nTry it: loopless wake test\n')
    expect(await target()).toEqual([{ function_arn: arn, region: null, timeout_ms: 1000 }])
  })

  it('answers a program', async () => {
    const { json } = await loopless('wake', 'set', '--function', arn, '--region', 'eu-central-1', '--json')
    expect(json()).toEqual({ functionArn: arn, region: 'eu-central-1', timeoutMs: 1000 })
  })

  it.each([
    [['--function', 'shop wake'], 'Expected the name or ARN of a Lambda function, such as arn:aws:lambda:'],
    [
      ['--function', 'arn:aws:s3:::shop'],
      'Expected the name or ARN of a Lambda function, such as arn:aws:lambda:',
    ],
    [
      ['--function', arn, '--region', 'us-east-1'],
      'Expected a region, that of the ARN, eu-central-1, got us-east-1.',
    ],
    [['--function', 'x', '--region', 'Europe!'], 'Expected a region such as eu-central-1, got Europe!.'],
  ])('refuses what cannot be: %j', async (argv, message) => {
    const { code, out, err } = await loopless('wake', 'set', ...argv)
    expect({ code, out }).toEqual({ code: 1, out: '' })
    expect(err).toMatch(/^loopless: [^\n]+\n$/)
    expect(err).toContain(message)
    expect(await target()).toEqual([])
  })

  it.each([
    'arn:aws-cn:lambda:cn-north-1:123456789012:function:x:live',
    '123456789012:function:x',
    'x:$LATEST',
  ])('takes %s', async (functionArn) => {
    expect((await loopless('wake', 'set', '--function', functionArn)).code).toBe(0)
  })
})

describe('wake off', () => {
  it('unsets it, and says whether it was set', async () => {
    await loopless('wake', 'set', '--function', arn)
    expect((await loopless('wake', 'off')).out).toBe('The schedule alone polls.\n')
    expect((await loopless('wake', 'off')).out).toBe('Nothing was set. The schedule alone polls.\n')
    expect((await loopless('wake', 'off', '--json')).json()).toEqual({ wasSet: false })
    expect(await target()).toEqual([])
  })
})

describe('wake test', () => {
  const test = (...argv: string[]) => loopless('wake', 'test', ...argv)

  it('says that nothing is set', async () => {
    expect(await test()).toMatchObject({
      code: 1,
      err: 'loopless: Nothing is set: loopless wake set --function ARN.\n',
    })
  })

  it('tells the status and how long it took, also while a poller is awake', async () => {
    await makeExtension(`
      if $1 <> row('${arn}', null)::aws_commons._lambda_function_arn_1 or $2::text <> '{"loopless":"wake"}' or $3 <> 'Event'
        or current_setting('aws_lambda.request_timeout_ms') <> '250' then raise exception 'unexpected %', $1; end if;
      status_code := 202;`)
    await loopless('wake', 'set', '--function', arn, '--timeout-ms', '250')
    await sql`select loopless.mark_awake(60000)`
    const { code, out } = await test()
    expect(code).toBe(0)
    expect(out).toMatch(/^Lambda took the wake: status 202, in [\d.]+ m?s\. A publish waits as long\.\n$/)
    expect((await test('--json')).json()).toEqual({
      status: 202,
      tookMs: expect.any(Number),
      isNotification: false,
      failure: null,
    })
  })

  it.each([
    [
      'no extension',
      '',
      /^schema "aws_commons" does not exist\. The extension is missing: on RDS run "create extension aws_lambda/,
    ],
    [
      'no right',
      "raise insufficient_privilege using message = 'permission denied for schema aws_lambda';",
      /grant usage on schema aws_lambda to "\w+"; grant execute/,
    ],
    [
      'no way there',
      failing("AWS Lambda client returned ''Unable to connect to endpoint''."),
      /^invoke API failed: AWS Lambda client returned 'Unable to connect to endpoint'\. .*port 443/,
    ],
    [
      'no answer',
      failing("AWS Lambda client returned ''Timeout was reached''."),
      /within 1000 ms.*--timeout-ms/,
    ],
    [
      'no role',
      failing("credentials stored with the database cluster can''t be accessed"),
      /The database has no role/,
    ],
    ['a role that may not', failing('AccessDeniedException'), /The role of the database may not/],
    ['no function', failing('ResourceNotFoundException: Function not found'), /no such function/],
    [
      'something unknown',
      failing('out of order'),
      /out of order\. Until that is mended, the schedule alone polls/,
    ],
    [
      'another status',
      'status_code := 200;',
      /^Lambda answered 200 where 202 was expected\. Look at the function/,
    ],
    ['no status', 'status_code := null;', /^Lambda answered nothing where 202 was expected/],
  ])('tells what is wrong and how to mend it: %s', async (_, body, message) => {
    if (body !== '') await makeExtension(body)
    await loopless('wake', 'set', '--function', arn)
    const { code, out, err } = await test()
    expect({ code, out }).toEqual({ code: 1, out: '' })
    expect(err).toMatch(/^loopless: The wake failed after [\d.]+ m?s: [^\n]+\n$/)
    expect(err.replace(/^[^:]+: [^:]+: /, '')).toMatch(message)
    const { code: codeOfJson, json } = await test('--json')
    expect(codeOfJson).toBe(1)
    expect(json()).toMatchObject({ failure: { code: expect.any(String), mend: expect.any(String) } })
    expect(await sql`select from loopless.wake_failure`).toHaveLength(0) // it is a trial
  })

  it('tells a broken connection from a failed wake', async () => {
    await makeExtension('perform pg_terminate_backend(pg_backend_pid());')
    await loopless('wake', 'set', '--function', arn)
    expect((await test()).err).toMatch(/^loopless: (?!The wake failed).*connection/)
  })
})

describe('the wakes in status', () => {
  it('are off at first', async () => {
    expect(await wakeStatus()).toEqual({
      target: null,
      awakeUntil: '1970-01-01T00:00:00.000Z',
      sent: 0,
      failures: { count: 0, isMore: false },
      lastFailure: null,
    })
    expect((await loopless('status')).out).toMatch(/^Wake +off: the schedule alone polls$/m)
  })

  it('tell whom publishes wake, and whether a poller is awake', async () => {
    await makeExtension('status_code := 202;')
    await loopless('wake', 'set', '--function', 'shop-wake', '--region', 'us-east-1')
    const before = (await loopless('status')).out
    expect(before).toMatch(/^Wake +shop-wake in us-east-1$/m)
    expect(before).toMatch(/^Awake +nobody: the next publish wakes one$/m)
    expect(before).toMatch(/^Wakes sent +0$/m)
    await loopless('publish', 'order.placed', '{}')
    await sql`select loopless.mark_awake(3600000)`
    const after = (await loopless('status')).out
    expect(after).toMatch(/^Awake +a poller, or it is on its way$/m)
    expect(after).toMatch(/^Wakes sent +1$/m)
    expect(after).not.toContain('Wakes failed')
  })

  it('tell how many failed, and the last error', async () => {
    await makeExtension(
      "raise exception 'invoke API failed' using detail = 'no ' || nextval('loopless.wake_count');",
    )
    await loopless('wake', 'set', '--function', arn)
    for (const _ of [1, 2]) {
      await sql`select loopless.publish('order.placed', '{}')`
      await sql`select loopless.mark_awake(0)`
    }
    expect(await wakeStatus()).toMatchObject({
      target: { functionArn: arn, region: null, timeoutMs: 1000 },
      failures: { count: 2, isMore: false },
      lastFailure: { code: 'P0001', message: 'invoke API failed: no 3' },
    })
    const { out } = await loopless('status')
    expect(out).toMatch(/^Wakes failed +2, the last (now|.* ago): see loopless wake test$/m)
    expect(out).toMatch(/^ +invoke API failed: no 3$/m)
    for (const line of out.split('\n')) expect(line.length).toBeLessThanOrEqual(80)
  })

  it('are shown as far as the role may look', async () => {
    const role = `viewer_${process.pid}`
    await sql.unsafe(`
      create role ${role} login;
      grant usage on schema loopless to ${role};
      grant select on all tables in schema loopless to ${role}`)
    try {
      const viewer = new URL(url)
      viewer.username = role
      const looking = commandLine(viewer.href)
      const wake = async () => ((await looking('status', '--json')).json() as { wake: unknown }).wake
      expect(await wake()).toMatchObject({ target: null, awakeUntil: null, sent: null })
      await sql.unsafe(`grant select on all sequences in schema loopless to ${role}`)
      expect(await wake()).toMatchObject({ awakeUntil: '1970-01-01T00:00:00.000Z', sent: 0 })
    } finally {
      await sql.unsafe(`drop owned by ${role}; drop role ${role}`)
    }
  })
})
