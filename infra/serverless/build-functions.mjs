// A serverless plugin: builds the functions (esbuild.config.mjs) before anything packages or runs them, and lets what
// runs them on this machine come to an end.

/**
 * What is used of the framework, the same in osls and in the official version 4.
 *
 * @typedef {{ classes: { Error: new (message: string) => Error } }} Serverless
 * @typedef {{ log: { error(text: string): void } }} Utilities
 */

export default class BuildFunctions {
  /**
   * @param {Serverless} serverless
   * @param {unknown} _options
   * @param {Utilities} utilities
   */
  constructor(serverless, _options, { log }) {
    /** @type {Promise<void> | undefined} */
    let built
    const build = () => {
      built ??= buildFunctions(serverless)
      return built
    }
    let isInvokedLocally = false
    const buildForInvocation = () => {
      isInvokedLocally = true
      return build()
    }
    const buildForOffline = () => {
      // What an asynchronous invocation throws is nobody's in the emulator, and would end it.
      process.on('unhandledRejection', (error) => log.error(`An invocation failed: ${error}`))
      return build()
    }
    this.hooks = {
      'before:package:createDeploymentArtifacts': build,
      'before:deploy:function:packageFunction': build,
      'before:invoke:local:invoke': buildForInvocation,
      'before:offline:start': buildForOffline, // serverless offline
      'before:offline:start:init': buildForOffline, // serverless offline start
      // A function keeps its connection for its next invocation. Here there is none, and the process would stay.
      finalize: () => {
        if (isInvokedLocally) process.stdout.write('', () => process.exit())
      },
    }
  }
}

/** @param {Serverless} serverless */
async function buildFunctions(serverless) {
  // Imported here: osls loads plugins with require, which cannot load a module that awaits at its top.
  const config = await import('../../esbuild.config.mjs')
  try {
    await config.buildFunctions()
  } catch (error) {
    // The framework prints a stack trace for any error but its own.
    throw new serverless.classes.Error(error instanceof Error ? error.message : String(error))
  }
}
