import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { rm, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { CloudFormationClient, DescribeStacksCommand } from '@aws-sdk/client-cloudformation'
import { CloudWatchLogsClient, paginateFilterLogEvents } from '@aws-sdk/client-cloudwatch-logs'
import {
  GetFunctionUrlConfigCommand,
  InvokeCommand,
  LambdaClient,
  UpdateFunctionConfigurationCommand,
  waitUntilFunctionUpdatedV2,
} from '@aws-sdk/client-lambda'
import { ReceiveMessageCommand, SQSClient } from '@aws-sdk/client-sqs'
import { afterAll, inject } from 'vitest'
import { project } from '../../infra/local/home.ts'
import { copyProject } from './project-copy.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** Of LocalStack. */
    awsUrl: string
  }
}

/** A copy of this project that is deployed to LocalStack as a stack of its own. */
export interface Deployment {
  readonly stack: string
  /** Writes a file of the copy; undefined removes it. */
  write(path: string, text: string | undefined): Promise<void>
  /** `serverless deploy`. @throws with what it printed */
  deploy(): Promise<void>
  /** `serverless remove`; how it ends says nothing here: see `status`. */
  remove(): Promise<void>
  /** Of the stack, e.g. UPDATE_COMPLETE; undefined when there is none. */
  status(): Promise<string | undefined>
  /** Of the stack. */
  output(name: string): Promise<string>
  /** Invokes a function and waits for its answer. */
  invoke(name: string, payload?: object): Promise<{ readonly isError: boolean; readonly payload: unknown }>
  /** Invokes a function and does not wait. */
  send(name: string, payload: object): Promise<void>
  setTimeoutSeconds(name: string, seconds: number): Promise<void>
  /** A request to a function's URL. */
  post(
    name: string,
    message: { headers: Record<string, string>; body: string },
  ): Promise<{ readonly status: number; readonly body: string }>
  /** What a function has written, in CloudWatch Logs. */
  log(name: string): Promise<string[]>
  /** The bodies of messages that wait in a queue; they are taken. */
  messages(queueUrl: string): Promise<unknown[]>
}

const region = 'eu-central-1'

/** Makes the copy, for the calling test file; nothing is deployed yet. What is there at the end is removed. */
export async function newDeployment(params: Record<string, string>): Promise<Deployment> {
  const directory = await copyProject()

  const stage = `test-${randomBytes(4).toString('hex')}`
  const stack = `loopless-${stage}`
  const connection = {
    endpoint: inject('awsUrl'),
    region,
    credentials: { accessKeyId: 'test', secretAccessKey: 'test' },
  }
  const lambda = new LambdaClient(connection)
  const cloudFormation = new CloudFormationClient(connection)
  const logs = new CloudWatchLogsClient(connection)
  const sqs = new SQSClient(connection)
  const fullName = (name: string): string => `${stack}-${name}`

  async function serverless(command: string): Promise<void> {
    const program = join(project, 'node_modules/serverless/bin/serverless.js')
    const given = Object.entries(params).flatMap(([name, value]) => ['--param', `${name}=${value}`])
    const run = promisify(execFile)(process.execPath, [program, command, '--stage', stage, ...given], {
      cwd: directory,
      env: {
        ...process.env,
        AWS_ENDPOINT_URL: connection.endpoint,
        AWS_ACCESS_KEY_ID: connection.credentials.accessKeyId,
        AWS_SECRET_ACCESS_KEY: connection.credentials.secretAccessKey,
        SLS_AWS_MONITORING_FREQUENCY: '500', // ms between two looks at the stack; 5 s without
        SLS_TELEMETRY_DISABLED: '1',
        SLS_NOTIFICATIONS_MODE: 'off',
      },
    })
    await run.catch(({ stdout }: { stdout: string }) => {
      throw new Error(`serverless ${command} failed:\n${stdout}`)
    })
  }

  async function describe() {
    try {
      const { Stacks: [found] = [] } = await cloudFormation.send(
        new DescribeStacksCommand({ StackName: stack }),
      )
      return found?.StackStatus === 'DELETE_COMPLETE' ? undefined : found
    } catch (error) {
      if (error instanceof Error && /does not exist/.test(error.message)) return undefined
      throw error
    }
  }

  const deployment: Deployment = {
    stack,
    write: async (path, content) => {
      if (content === undefined) await rm(join(directory, path))
      else await writeFile(join(directory, path), content)
    },
    deploy: () => serverless('deploy'),
    remove: () => serverless('remove').catch(() => {}),
    status: async () => (await describe())?.StackStatus,
    output: async (name) => {
      const outputs = (await describe())?.Outputs ?? []
      const value = outputs.find(({ OutputKey }) => OutputKey === name)?.OutputValue
      if (value === undefined) throw new Error(`Expected ${stack} to have an output ${name}.`)
      return value
    },
    invoke: async (name, payload = {}) => {
      const { FunctionError, Payload } = await lambda.send(
        new InvokeCommand({ FunctionName: fullName(name), Payload: JSON.stringify(payload) }),
      )
      const answer: unknown = JSON.parse(Buffer.from(Payload ?? []).toString() || 'null')
      return { isError: FunctionError !== undefined, payload: answer }
    },
    send: async (name, payload) => {
      await lambda.send(
        new InvokeCommand({
          FunctionName: fullName(name),
          InvocationType: 'Event',
          Payload: JSON.stringify(payload),
        }),
      )
    },
    setTimeoutSeconds: async (name, seconds) => {
      const FunctionName = fullName(name)
      await lambda.send(new UpdateFunctionConfigurationCommand({ FunctionName, Timeout: seconds }))
      await waitUntilFunctionUpdatedV2({ client: lambda, maxWaitTime: 60 }, { FunctionName })
    },
    post: async (name, message) => {
      const { FunctionUrl = '' } = await lambda.send(
        new GetFunctionUrlConfigCommand({ FunctionName: fullName(name) }),
      )
      return post(connection.endpoint, FunctionUrl, message)
    },
    log: async (name) => {
      const lines: string[] = []
      const pages = paginateFilterLogEvents(
        { client: logs },
        { logGroupName: `/aws/lambda/${fullName(name)}` },
      )
      for await (const { events = [] } of pages) lines.push(...events.map(({ message = '' }) => message))
      return lines
    },
    messages: async (QueueUrl) => {
      const { Messages = [] } = await sqs.send(
        new ReceiveMessageCommand({ QueueUrl, MaxNumberOfMessages: 10 }),
      )
      return Messages.map(({ Body = 'null' }): unknown => JSON.parse(Body))
    },
  }
  afterAll(async () => {
    if ((await deployment.status()) !== undefined) await deployment.remove()
  })
  return deployment
}

/** The host of a function URL is a name that need not resolve: LocalStack tells functions apart by the header. */
async function post(
  endpoint: string,
  url: string,
  { headers, body }: { headers: Record<string, string>; body: string },
): Promise<{ status: number; body: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: string }>()
  const sent = request(
    endpoint,
    { method: 'POST', path: new URL(url).pathname, headers: { ...headers, host: new URL(url).host } },
    (response) => {
      text(response).then((answer) => resolve({ status: response.statusCode ?? 0, body: answer }), reject)
    },
  )
  sent.on('error', reject)
  sent.end(body)
  return promise
}
