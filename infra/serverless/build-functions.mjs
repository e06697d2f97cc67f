// A serverless plugin: builds the functions (esbuild.config.mjs) before anything packages or runs them, and gives what
// runs them on this machine a database.

/**
 * What is used of the framework, the same in osls and in the official version 4.
 *
 * @typedef {{
 *   classes: { Error: new (message: string) => Error }
 *   service: {
 *     provider: { environment?: { DATABASE_URL?: string; NODE_OPTIONS?: string } }
 *     functions: Record<string, { events?: object[] }>
 *     custom: { offlineRoutes: Record<string, string> }
 *   }
 * }} Serverless
 * @typedef {{ log: { error(text: string): void } }} Utilities
 */

export default class BuildFunctions {
  /**
   * @param {Serverless} serverless
   * @param {unknown} _options
   * @param {Utilities} utilities
   */
  constructor(serverless, _options, { log }) {
    const build = once(() => reporting(serverless, buildFunctions))
    /** @type {(() => Promise<void>) | undefined} */
    let stopDatabase
    const startDatabase = once(async () => {
      const url = serverless.service.provider.environment?.DATABASE_URL ?? ''
      stopDatabase = await reporting(serverless, () => ensureDatabase(url))
    })

    const prepareInvocation = async () => {
      isInvokedLocally = true
      await build()
      await startDatabase()
    }
    let isInvokedLocally = false
    const finishInvocation = async () => {
      if (!isInvokedLocally) return
      await stopDatabase?.()
      // A function keeps its connection for its next invocation. Here there is none, and the process would stay.
      process.stdout.write('', () => process.exit())
    }

    const prepareOffline = async () => {
      // What an asynchronous invocation throws is nobody's in the emulator, and would end it.
      process.on('unhandledRejection', (error) => log.error(`An invocation failed: ${error}`))
      guardWorkers(serverless, (error) => log.error(`A worker ended: ${error}`))
      process.on('exit', () => void stopDatabase?.())
      serveUrls(serverless)
      await build()
      await startDatabase()
    }

    this.hooks = {
      'before:package:createDeploymentArtifacts': build,
      'before:deploy:function:packageFunction': build,
      'before:invoke:local:invoke': prepareInvocation,
      finalize: finishInvocation,
      'before:offline:start': prepareOffline, // serverless offline
      'before:offline:start:init': prepareOffline, // serverless offline start
    }
  }
}

/**
 * Gives the functions that have a URL a route of serverless-offline's HTTP API, which sends the same requests:
 * serverless-offline has no function URLs.
 *
 * @param {Serverless} serverless
 */
function serveUrls({ service: { functions, custom } }) {
  for (const [name, httpApi] of Object.entries(custom.offlineRoutes)) {
    functions[name]?.events?.push({ httpApi })
  }
}

/**
 * Keeps what a handler does beside its invocation, such as a rejection that nobody awaits, from ending its worker, and a
 * worker that ends all the same from ending the emulator, which has no listener for that.
 *
 * @param {Serverless} serverless
 * @param {(error: Error) => void} onError
 */
function guardWorkers({ service: { provider } }, onError) {
  const guard = new URL('guard-worker.mjs', import.meta.url).href
  provider.environment ??= {}
  provider.environment.NODE_OPTIONS = `${provider.environment.NODE_OPTIONS ?? ''} --import=${guard}`.trim()
  process.on('worker', (worker) => worker.on('error', onError))
}

async function buildFunctions() {
  // Imported here: osls loads plugins with require, which cannot load a module that awaits at its top.
  const config = await import('../../esbuild.config.mjs')
  await config.buildFunctions()
}

/** @param {string} databaseUrl */
async function ensureDatabase(databaseUrl) {
  const { builtHandlers, ensureLocalDatabase } = await import('../local/postgres.ts')
  return ensureLocalDatabase(databaseUrl, async () => {
    const config = await import('../../esbuild.config.mjs')
    await config.buildPackage() // which the handlers import
    return builtHandlers()
  })
}

/**
 * @template Result
 * @param {() => Promise<Result>} run
 */
function once(run) {
  /** @type {Promise<Result> | undefined} */
  let result
  return () => {
    result ??= run()
    return result
  }
}

/**
 * Runs something whose errors are for people: the framework prints a stack trace for any error but its own.
 *
 * @template Result
 * @param {Serverless} serverless
 * @param {() => Promise<Result>} run
 */
async function reporting(serverless, run) {
  try {
    return await run()
  } catch (error) {
    throw new serverless.classes.Error(error instanceof Error ? error.message : String(error))
  }
}
