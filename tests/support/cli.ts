import { fileURLToPath } from 'node:url'
import { runCommand } from '../../src/cli/program.ts'

/** What a command said, and its exit code. */
export interface CommandResult {
  readonly code: number
  readonly out: string
  readonly err: string
  /** The answer of `--json`. */
  json(): unknown
}

/** Handlers for commands that need some: `cli-handlers.ts`. */
export const handlersPath: string = fileURLToPath(new URL('./cli-handlers.ts', import.meta.url))

/** Runs command lines in this process, against a database, without colours and 80 columns wide. */
export function commandLine(databaseUrl: string, input = ''): (...argv: string[]) => Promise<CommandResult> {
  return async (...argv) => {
    let out = ''
    let err = ''
    const code = await runCommand(argv, {
      env: { DATABASE_URL: databaseUrl, PGCONNECT_TIMEOUT: '2' },
      columns: 80,
      isColoured: false,
      write: (text) => {
        out += text
      },
      writeError: (text) => {
        err += text
      },
      readInput: async () => input,
    })
    return { code, out, err, json: () => JSON.parse(out) }
  }
}
