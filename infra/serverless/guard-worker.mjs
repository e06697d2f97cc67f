// Loaded into the workers of serverless-offline, in which the functions run: what a handler does wrong ends no worker.
// Lambda would make another environment; serverless-offline goes on to invoke the one that has ended.

const report = (/** @type {unknown} */ error) => console.error('Outside of any invocation:', error)
process.on('unhandledRejection', report)
process.on('uncaughtException', report)

process.exit = (code) => {
  throw new Error(`The function called process.exit(${code ?? ''}), which would have ended it.`)
}
