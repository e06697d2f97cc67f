// `npm run localstack`: an emulated AWS account to deploy to, until Ctrl-C.

import { join } from 'node:path'
import { home } from '../local/home.ts'
import { startLocalStack } from './localstack.ts'

const port = Number(process.env['LOCALSTACK_PORT'] || 4566)

const localStack = await startLocalStack({
  port,
  directory: join(home, 'localstack'),
  onProgress: (text) => console.log(text),
})
console.log(`${localStack.name} answers. Deploy to it, with a database that runs on this machine:

  export AWS_ENDPOINT_URL=${localStack.url} AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
  npx serverless deploy --stage dev --param databaseUrl=postgres://…

What it writes is in ${localStack.logFile}; what functions write, in its CloudWatch Logs. Ctrl-C stops it.`)

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    console.log('Stopping.')
    void localStack.stop()
  })
}
const how = await localStack.ended
await localStack.stop()
if (!/SIGTERM|with 0$/.test(how)) {
  console.error(how)
  process.exitCode = 1
}
