import { InvokeCommand, LambdaClient } from '@aws-sdk/client-lambda'

/** An asynchronous invocation. */
export interface Invocation {
  /** Name or ARN. */
  readonly functionName: string
  readonly region?: string
  readonly qualifier?: string
  /** Client context, JSON. */
  readonly context?: string
  /** JSON. */
  readonly payload?: string
}

/** Lambda at an endpoint of this machine. */
export interface LocalLambda {
  /** Returns when the invocation is accepted, not when the function has run. */
  invoke(invocation: Invocation): Promise<void>
  close(): void
}

/** Asked for by the client, and looked at neither by serverless-offline nor by LocalStack. */
const credentials = { accessKeyId: 'local', secretAccessKey: 'local' }

/**
 * A client for serverless-offline or LocalStack.
 *
 * @param namesOnly true for serverless-offline, which knows functions by name: an ARN is cut down to its name
 */
export function lambdaAt(endpoint: string, { namesOnly = false } = {}): LocalLambda {
  const clients = new Map<string, LambdaClient>()
  const clientOf = (region: string): LambdaClient => {
    const client = clients.get(region) ?? new LambdaClient({ endpoint, region, credentials })
    clients.set(region, client)
    return client
  }
  return {
    async invoke({ functionName, region = regionOf(functionName), qualifier, context, payload }) {
      const command = new InvokeCommand({
        FunctionName: namesOnly ? nameOf(functionName) : functionName,
        Qualifier: qualifier,
        InvocationType: 'Event',
        ClientContext: context === undefined ? undefined : Buffer.from(context).toString('base64'),
        ...(payload !== undefined && { Payload: payload }),
      })
      await clientOf(region).send(command)
    },
    close() {
      for (const client of clients.values()) client.destroy()
    },
  }
}

/** Of `name`, `name:qualifier`, `account:function:name` or a whole ARN. */
export function nameOf(functionName: string): string {
  return /^(?:.*:?function:)?([^:]+)/.exec(functionName)?.[1] ?? functionName
}

function regionOf(functionName: string): string {
  return /^arn:[^:]+:lambda:([^:]+):/.exec(functionName)?.[1] ?? 'us-east-1'
}
