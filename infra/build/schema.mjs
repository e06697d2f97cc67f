// The module `loopless:schema`: a function that is one file has no folder to read infra/migrations from.

import { readFile } from 'node:fs/promises'
import { readMigrations } from '../../src/db/migrate.ts'

const handlerSchema = new URL('../../functions/schema.sql', import.meta.url)

/** @returns {import('esbuild').Plugin} */
export function schemaModule() {
  return {
    name: 'loopless-schema',
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^loopless:schema$/ }, ({ path }) => ({ path, namespace: 'schema' }))
      onLoad({ filter: /./, namespace: 'schema' }, async () => {
        const text = await readFile(handlerSchema, 'utf8')
        return {
          contents: `
            export const migrations = ${JSON.stringify(readMigrations())}
            export const handlerSchema = ${JSON.stringify(text)}`,
        }
      })
    },
  }
}
