#!/usr/bin/env node
import { runCommand } from './program.ts'
import { processTerminal } from './terminal.ts'

// a reader that has seen enough, such as `head`, is no failure
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? 0 : 1)
})

const exitCode = await runCommand(process.argv.slice(2), processTerminal())

// after what was written has gone out: a handler of `poll` may have left a connection or a timer behind
process.stdout.write('', () => process.exit(exitCode))
