// A serverless plugin: tells the custom resource Migration (infra/resources/migration.yml) what it would do, as a hash of
// the function migrate (its bundle, in which are the migrations and the handlers) and of its settings. CloudFormation
// runs it again when the hash differs, and not otherwise.

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * What is used of the framework, the same in osls and in the official version 4.
 *
 * @typedef {{
 *   serviceDir: string
 *   service: {
 *     provider: { environment: object }
 *     functions: { migrate: { environment: object } }
 *     resources: { Resources: { Migration: { Properties: Record<string, unknown> } } }
 *   }
 * }} Serverless
 */

export default class FingerprintMigration {
  /** @param {Serverless} serverless */
  constructor({ serviceDir, service }) {
    this.hooks = {
      // The function is built, and the template not written yet.
      'before:package:finalize': () => {
        const { provider, functions, resources } = service
        resources.Resources.Migration.Properties['Fingerprint'] = createHash('sha256')
          .update(readFileSync(join(serviceDir, 'dist/functions/migrate.cjs')))
          .update(JSON.stringify([provider.environment, functions.migrate.environment]))
          .digest('hex')
      },
    }
  }
}
