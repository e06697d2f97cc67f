// A serverless plugin: before anything is packaged, says what is wrong with the parameters and how to mend it.

/**
 * What is used of the framework, the same in osls and in the official version 4.
 *
 * @typedef {{
 *   classes: { Error: new (message: string) => Error }
 *   processedInput: { options: { param?: string[] } }
 *   configurationInput: { params: Record<string, Record<string, unknown>> }
 *   service: { provider: { stage: string } }
 * }} Serverless
 */

export default class CheckParameters {
  /** @param {Serverless} serverless */
  constructor(serverless) {
    // Ahead of the first step, which removes what was packaged before.
    this.hooks = { 'before:package:cleanup': () => check(serverless) }
  }
}

/** @param {Serverless} serverless */
async function check({ classes, processedInput, configurationInput: { params }, service }) {
  // Imported here: osls loads plugins with require.
  const { checkNames, checkParameters } = await import('../deploy/parameters.ts')
  const given = Object.fromEntries(
    (processedInput.options.param ?? []).map((text) => {
      const at = text.indexOf('=')
      return [text.slice(0, at), text.slice(at + 1)]
    }),
  )
  const known = { ...params['default'], ...params[service.provider.stage] }
  const problems = [
    ...checkNames(Object.keys(given), Object.keys(known)),
    ...checkParameters({ ...known, ...given }),
  ]
  if (problems.length > 0) throw new classes.Error(problems.map((problem) => `- ${problem}`).join('\n'))
}
