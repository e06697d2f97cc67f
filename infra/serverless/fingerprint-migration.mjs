// A serverless plugin: tells the custom resource Migration (infra/resources/migration.yml) what it would do, as a hash of
// the function migrate (its bundle, in which are the migrations and the handlers) and of its settings. CloudFormation
// runs it again when the hash differs, and not otherwise.

import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * What is used of the framework, the same in osls and in the official version 4.
 *
 * @typedef {{ Properties: Record<string, unknown> }} Resource
 * @typedef {{
 *   serviceDir: string
 *   service: {
 *     provider: { environment?: object }
 *     functions: Record<string, { dependsOn?: string[]; environment?: object }>
 *     resources: { Resources: Record<string, Resource> }
 *   }
 * }} Serverless
 */

export default class FingerprintMigration {
  /** @param {Serverless} serverless */
  constructor(serverless) {
    const bundle = join(serverless.serviceDir, 'dist/functions/migrate.cjs')
    this.hooks = {
      initialize: () => leaveOut(serverless),
      'before:package:finalize': () => {
        const { Migration } = serverless.service.resources.Resources
        if (Migration === undefined) return
        Migration.Properties['Fingerprint'] = createHash('sha256')
          .update(readFileSync(bundle))
          .update(JSON.stringify(serverless.service.functions['migrate']?.environment))
          .update(JSON.stringify(serverless.service.provider.environment))
          .digest('hex')
      },
    }
  }
}

/**
 * Leaves out functions that are not written yet, and the migration with its function.
 *
 * @param {Serverless} serverless
 */
function leaveOut({ serviceDir, service: { functions, resources } }) {
  for (const name of ['wake', 'migrate']) {
    if (existsSync(join(serviceDir, `functions/${name}.ts`))) continue
    delete functions[name]
    const { Resources } = resources
    if (name === 'wake') {
      for (const resource of ['WakeRole', 'DatabaseRole', 'DatabaseRoleArn']) delete Resources[resource]
      delete (/** @type {{ Outputs?: Record<string, unknown> }} */ (resources).Outputs?.['DatabaseRoleArn'])
    } else {
      for (const resource of ['MigrateRole', 'Migration']) delete Resources[resource]
      for (const one of Object.values(functions)) delete one.dependsOn
    }
  }
}
