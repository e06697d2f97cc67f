import { readFile } from 'node:fs/promises'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { installAwsLambda } from '../infra/local/aws-lambda.ts'
import { migrate } from '../src/db/migrate.ts'
import { canInvokeAtOnce } from './support/at-once.ts'
import { testDatabase } from './support/database.ts'
import { startLambda } from './support/lambda.ts'

const { sql, url, connect } = await testDatabase()
const arn = 'arn:aws:lambda:eu-central-1:123456789012:function:shop-wake'
/** What a shell, curl, JSON or a URL could take for something else. */
const hostile = `$(touch /tmp/x) '; " \\ \n\t \` & | %0a {a,b} [1-3] @/etc/passwd # é 😀 \\" -o /tmp/x`

interface Sent {
  readonly functionName: string
  readonly region?: string
  readonly qualifier?: string
  readonly context?: string
  readonly payload: string
}

/** What was sent while `run` went on, in order. */
async function notifiedBy(run: () => Promise<unknown>): Promise<Sent[]> {
  const listener = connect({ max: 1 })
  const sent: string[] = []
  const ended = Promise.withResolvers<void>()
  await listener.listen('aws_lambda', (payload) => (payload === 'end' ? ended.resolve() : sent.push(payload)))
  await run()
  await sql`select pg_notify('aws_lambda', 'end')`
  await ended.promise
  await listener.end()
  return sent.map((one) => JSON.parse(one))
}

const forms = [
  ['a name', 'json', 'function_name text', 'region text DEFAULT NULL::text, '],
  ['a name', 'jsonb', 'function_name text', 'region text DEFAULT NULL::text, '],
  ['a composite', 'json', 'function_name aws_commons._lambda_function_arn_1', ''],
  ['a composite', 'jsonb', 'function_name aws_commons._lambda_function_arn_1', ''],
] as const

async function signatures(): Promise<string[]> {
  const rows = await sql`
    select pg_get_function_arguments(p.oid) as arguments
    from pg_proc p where p.pronamespace = 'aws_lambda'::regnamespace and p.proname = 'invoke'`
  return rows.map((row) => row['arguments'])
}

const variants = ['at the commit', ...((await canInvokeAtOnce(sql)) ? (['at once'] as const) : [])] as const

describe.each(variants)('aws_lambda %s', (variant) => {
  beforeEach(() => installAwsLambda(sql, variant))

  it.each(forms)('has the form of RDS for %s and %s', async (_, type, name, region) => {
    expect(await signatures()).toContain(
      `${name}, payload ${type}, ${region}invocation_type text DEFAULT 'RequestResponse'::text, ` +
        `log_type text DEFAULT 'None'::text, context ${type} DEFAULT NULL::${type}, ` +
        'qualifier character varying DEFAULT NULL::character varying, ' +
        `OUT status_code integer, OUT payload ${type}, OUT executed_version text, OUT log_result text`,
    )
    expect(await signatures()).toHaveLength(4)
  })

  it('makes the composite from a name or ARN, and a region or none', async () => {
    const [row] = await sql`
      select a.*, b.region as none
      from aws_commons.create_lambda_function_arn(${arn}, 'eu-central-1') a, aws_commons.create_lambda_function_arn('x') b`
    expect(row).toEqual({ function_name: arn, region: 'eu-central-1', none: null })
  })

  it.each([
    [
      'a function name',
      sql`'shop wake', '{}'::json, null, 'Event'`,
      'name or ARN of a Lambda function, got "shop wake"',
    ],
    [
      'a function name',
      sql`'../x', '{}'::json, null, 'Event'`,
      'name or ARN of a Lambda function, got "../x"',
    ],
    [
      'an invocation type',
      sql`'x', '{}'::json, null, 'event'`,
      'RequestResponse, Event or DryRun, got "event"',
    ],
    ['a log type', sql`'x', '{}'::json, null, 'Event', 'tail'`, 'None or Tail, got "tail"'],
    [
      'a region',
      sql`${arn}, '{}'::json, 'us-east-1', 'Event'`,
      'that of the ARN if there is one, got "us-east-1"',
    ],
    [
      'a qualifier',
      sql`${`${arn}:live`}, '{}'::json, null, 'Event', 'None', null, 'v2'`,
      'that of the ARN if there is one, got "v2"',
    ],
  ])('refuses %s that Lambda would refuse: %#', async (_, parameters, message) => {
    await expect(sql`select aws_lambda.invoke(${parameters})`).rejects.toThrow(message)
  })

  it('may be installed again', async () => {
    await installAwsLambda(sql, variant)
    await installAwsLambda(sql, variant)
    expect(await signatures()).toHaveLength(4)
  })

  it('is for those who were granted it', async () => {
    await sql.begin(async (tx) => {
      await tx`create role stranger`
      await tx`set local role stranger`
      await expect(
        tx.savepoint((sp) => sp`select aws_lambda.invoke('x', '{}'::json, null, 'DryRun')`),
      ).rejects.toThrow('permission denied for schema aws_lambda')
      await tx`reset role`
      await tx`grant usage on schema aws_lambda to stranger`
      await tx`set local role stranger`
      await expect(
        tx.savepoint((sp) => sp`select aws_lambda.invoke('x', '{}'::json, null, 'DryRun')`),
      ).rejects.toThrow('permission denied for function invoke')
      await tx`reset role`
      await tx`drop owned by stranger`
      await tx`drop role stranger`
    })
  })
})

describe('aws_lambda at the commit', () => {
  beforeEach(() => installAwsLambda(sql, 'at the commit'))

  it('sends each invocation, to the letter, and answers as Lambda does to an Event', async () => {
    const sent = await notifiedBy(async () => {
      const context = { custom: { trace: hostile } }
      const rows = await sql`
        select i.* from aws_lambda.invoke(${arn}, ${` ${JSON.stringify({ hostile })}`}::text::json, 'eu-central-1', 'Event', 'Tail',
          ${JSON.stringify(context)}::text::json, 'live') i
        union all
        select i.* from aws_lambda.invoke(aws_commons.create_lambda_function_arn('wake', 'us-east-1'), '{"a": 1}'::json, 'Event') i`
      const answer = { status_code: 202, payload: null, executed_version: null, log_result: null }
      expect(rows).toEqual([answer, answer])
      await sql`select aws_lambda.invoke('wake', '{"a":  1}'::jsonb, null, 'Event')`
      await sql`select aws_lambda.invoke(aws_commons.create_lambda_function_arn(${arn}), '{"a":  1}'::jsonb, 'Event')`
    })
    const id = expect.any(String)
    expect(sent).toEqual([
      {
        id,
        functionName: arn,
        region: 'eu-central-1',
        qualifier: 'live',
        context: JSON.stringify({ custom: { trace: hostile } }),
        payload: ` ${JSON.stringify({ hostile })}`,
      },
      { id, functionName: 'wake', region: 'us-east-1', payload: '{"a": 1}' },
      { id, functionName: 'wake', payload: '{"a": 1}' },
      { id, functionName: arn, region: 'eu-central-1', payload: '{"a": 1}' },
    ])
  })

  it('sends two invocations of one transaction, and none of one that rolls back', async () => {
    const sent = await notifiedBy(async () => {
      await sql.begin(async (tx) => {
        for (const _ of [1, 2]) await tx`select aws_lambda.invoke('wake', '{}'::json, null, 'Event')`
      })
      const failing = sql.begin(async (tx) => {
        await tx`select aws_lambda.invoke('never', '{}'::json, null, 'Event')`
        throw new Error('rolled back')
      })
      await expect(failing).rejects.toThrow('rolled back')
    })
    expect(sent.map(({ functionName }) => functionName)).toEqual(['wake', 'wake'])
  })

  it('sends nothing for a dry run', async () => {
    const sent = await notifiedBy(async () => {
      const [row] = await sql`select status_code from aws_lambda.invoke('wake', '{}'::json, null, 'DryRun')`
      expect(row).toEqual({ status_code: 204 })
    })
    expect(sent).toEqual([])
  })

  it('says what it cannot do: answer, and carry much', async () => {
    await expect(sql`select aws_lambda.invoke('wake', '{}'::json)`).rejects.toMatchObject({
      code: '0A000',
      message: expect.stringContaining('there is no answer to wait for'),
      hint: expect.stringContaining("'Event'"),
    })
    const large = JSON.stringify('x'.repeat(8000))
    await expect(
      sql`select aws_lambda.invoke('wake', ${large}::text::json, null, 'Event')`,
    ).rejects.toMatchObject({
      code: '54000',
      message: expect.stringMatching(/carries less than 8,000 bytes, got 8\d\d\d with the payload/),
    })
  })

  it('needs no more than the right to create schemas', async () => {
    const role = `tenant_${process.pid}`
    await sql`drop schema aws_lambda, aws_commons cascade`
    await sql`create role ${sql(role)}`
    await sql.unsafe(`grant create on database "${new URL(url).pathname.slice(1)}" to ${role}`)
    const tenant = connect({ max: 1, connection: { role } })
    try {
      await installAwsLambda(tenant, 'at the commit')
      const [row] =
        await tenant`select current_user as role, status_code from aws_lambda.invoke('wake', '{}'::json, null, 'Event')`
      expect(row).toEqual({ role, status_code: 202 })
      await expect(installAwsLambda(tenant, 'at once')).rejects.toMatchObject({
        message: `The role ${role} may not run programs on the server, so it cannot invoke at once.`,
        hint: expect.stringContaining('aws_lambda.sql alone'),
      })
    } finally {
      await sql.unsafe(`drop owned by ${role} cascade; drop role ${role}`)
    }
  })
})

describe('the stand-in', () => {
  const texts = Promise.all(
    ['aws_lambda.sql', 'aws_lambda_at_once.sql'].map((file) =>
      readFile(new URL(`../infra/local/${file}`, import.meta.url), 'utf8'),
    ),
  )
  const without = (text: string): string => text.replace('\nbegin;\n', '').replace('\ncommit;\n', '')

  it.each(['aws_lambda', 'aws_commons'])('never replaces the extension %s', async (name) => {
    const [text = ''] = await texts
    const refused = sql.begin(async (tx) => {
      await tx`set local allow_system_table_mods = on`
      await tx`
        insert into pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
        values (987654, ${name}, 10, 2200, false, '1.0')`
      await tx.unsafe(without(text))
    })
    await expect(refused).rejects.toMatchObject({
      code: '55000',
      message: 'This database has the extension aws_lambda itself: the stand-in must not replace it.',
    })
  })

  it('never replaces what somebody else has put there', async () => {
    await sql`drop schema if exists aws_lambda, aws_commons cascade`
    await sql`create schema aws_lambda`
    await expect(installAwsLambda(sql, 'at the commit')).rejects.toMatchObject({
      code: '42P06',
      message: 'This database has a schema aws_commons or aws_lambda that is not this stand-in.',
    })
    expect(await sql`select from pg_namespace where nspname = 'aws_commons'`).toHaveLength(0)
    await sql`drop schema aws_lambda`
  })

  it('is not changed to at once where it is missing', async () => {
    const [, atOnce = ''] = await texts
    await sql`drop schema if exists aws_lambda, aws_commons cascade`
    await expect(sql.begin((tx) => tx.unsafe(without(atOnce)))).rejects.toThrow('run aws_lambda.sql before')
  })

  it('is no part of a migration', async () => {
    await migrate(sql)
    expect(await sql`select from pg_namespace where nspname like 'aws%'`).toHaveLength(0)
  })
})

describe.runIf(await canInvokeAtOnce(sql))('aws_lambda at once', async () => {
  const lambda = await startLambda()
  afterAll(() => lambda.close())
  let session: typeof sql
  beforeEach(async () => {
    await installAwsLambda(sql, 'at once')
    lambda.invocations.length = 0
    lambda.answer(() => ({ status: 202 }))
    session = at(lambda.url)
  })

  /** A session for which Lambda is at a place; a slow machine does not run into its time-outs. */
  const at = (endpoint: string): typeof sql =>
    connect({
      max: 1,
      connection: {
        'aws_lambda.endpoint_override': endpoint,
        'aws_lambda.connect_timeout_ms': 50_000,
        'aws_lambda.request_timeout_ms': 50_000,
      },
    })

  it('invokes before the commit, to the letter', async () => {
    const payload = ` ${JSON.stringify({ hostile })}`
    const context = JSON.stringify({ custom: { hostile } })
    const rolledBack = session.begin(async (tx) => {
      const rows = await tx`
        select i.* from aws_lambda.invoke(${arn}, ${payload}::text::json, 'eu-central-1', 'Event', 'Tail', ${context}::text::json, 'live') i`
      expect(rows).toEqual([{ status_code: 202, payload: null, executed_version: null, log_result: null }])
      await tx`select aws_lambda.invoke(aws_commons.create_lambda_function_arn('wake', 'us-east-1'), '{}'::jsonb, 'Event')`
      expect(lambda.invocations).toHaveLength(2)
      throw new Error('rolled back')
    })
    await expect(rolledBack).rejects.toThrow('rolled back')
    expect(lambda.invocations).toEqual([
      {
        functionName: arn,
        region: 'eu-central-1',
        qualifier: 'live',
        invocationType: 'Event',
        logType: 'Tail',
        context,
        payload,
      },
      {
        functionName: 'wake',
        region: 'us-east-1',
        qualifier: null,
        invocationType: 'Event',
        logType: 'None',
        context: undefined,
        payload: '{}',
      },
    ])
  })

  it('brings the answer', async () => {
    const body = JSON.stringify({ hostile }, null, 2)
    lambda.answer(() => ({
      status: 200,
      body,
      headers: { 'X-Amz-Executed-Version': '$LATEST', 'X-Amz-Log-Result': 'bG9n' },
    }))
    const [row] =
      await session`select i.*, i.payload::text as payload from aws_lambda.invoke('wake', '{}'::json) i`
    expect(row).toEqual({
      status_code: 200,
      payload: body,
      executed_version: '$LATEST',
      log_result: 'bG9n',
    })
    expect(await sql`select from aws_lambda.answer`).toHaveLength(0)
  })

  it.each([
    [
      'Lambda refuses',
      { status: 403, body: '{"Message": "User is not authorized to perform: lambda:InvokeFunction"}' },
      {
        code: '39000',
        message: 'invoke API failed',
        detail: `AWS Lambda client returned '403 {"Message": "User is not authorized to perform: lambda:InvokeFunction"}'`,
      },
    ],
    [
      'the function fails',
      { status: 200, body: '{"errorMessage":"no"}', headers: { 'X-Amz-Function-Error': 'Unhandled' } },
      {
        code: '38000',
        message: 'lambda invocation failed',
        detail: `"wake" returned error "Unhandled", details: "{"errorMessage":"no"}".`,
      },
    ],
  ])('fails as on RDS when %s', async (_, answer, error) => {
    lambda.answer(() => answer)
    await expect(session`select aws_lambda.invoke('wake', '{}'::json)`).rejects.toMatchObject(error)
    lambda.answer(() => ({ status: 204 }))
    expect(
      await session`select status_code from aws_lambda.invoke('wake', '{}'::json, null, 'DryRun')`,
    ).toEqual([{ status_code: 204 }])
  })

  it('gives up when Lambda does not answer within the time-outs', async () => {
    lambda.answer(() => 'hang')
    await session`set aws_lambda.connect_timeout_ms = 50`
    await session`set aws_lambda.request_timeout_ms = 50`
    await expect(session`select aws_lambda.invoke('wake', '{}'::json)`).rejects.toMatchObject({
      code: '39000',
      message: 'invoke API failed',
      detail: expect.stringMatching(/^AWS Lambda client returned '.*(timed out|timeout)/i),
    })
  })

  it('says that nothing is there, or that it was not told where', async () => {
    const nowhere = at('http://127.0.0.1:1')
    await expect(nowhere`select aws_lambda.invoke('wake', '{}'::json)`).rejects.toMatchObject({
      message: 'invoke API failed',
      detail: "AWS Lambda client returned 'Unable to connect to endpoint'",
    })
    await expect(sql`select aws_lambda.invoke('wake', '{}'::json)`).rejects.toMatchObject({
      message: 'This stand-in for aws_lambda does not know where Lambda is.',
      hint: expect.stringContaining('aws_lambda.endpoint_override'),
    })
  })

  it('carries 90,000 bytes, and says so when it is more', async () => {
    const letters = JSON.stringify('x'.repeat(90_000))
    await session`select aws_lambda.invoke('wake', ${letters}::text::json, null, 'Event')`
    expect(lambda.invocations).toEqual([expect.objectContaining({ payload: letters })])
    await expect(
      session`select aws_lambda.invoke('wake', ${JSON.stringify('x'.repeat(120_000))}::text::json, null, 'Event')`,
    ).rejects.toThrow('carries 100,000 bytes at most, got 12')
  })

  it('becomes at the commit again when that is installed', async () => {
    await installAwsLambda(sql, 'at the commit')
    expect(
      await notifiedBy(() => session`select aws_lambda.invoke('wake', '{}'::json, null, 'Event')`),
    ).toHaveLength(1)
    expect(lambda.invocations).toEqual([])
  })
})
