import { text } from 'node:stream/consumers'
import { styleText } from 'node:util'

/** Where a command reads from and writes to: the process's own, or a test's. */
export interface Terminal {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Columns that a line may have. */
  readonly columns: number
  /** Whether people look at it: colours. */
  readonly isColoured: boolean
  write(text: string): void
  writeError(text: string): void
  readInput(): Promise<string>
}

/** The terminal of this process; 80 columns when the output is not a terminal, or a narrower one. */
export function processTerminal(): Terminal {
  const { stdout, stderr, stdin, env } = process
  return {
    env,
    columns: Math.max(80, stdout.isTTY ? stdout.columns : 80),
    isColoured: stdout.isTTY && stdout.hasColors(),
    write: (line) => void stdout.write(line),
    writeError: (line) => void stderr.write(line),
    readInput: () => text(stdin),
  }
}

/** Bold on a terminal, as it is elsewhere. */
export function bold({ isColoured }: Terminal, line: string): string {
  return isColoured ? styleText('bold', line, { validateStream: false }) : line
}

/** The answer for a program: one line of JSON. */
export function writeJson(terminal: Terminal, answer: unknown): void {
  terminal.write(`${JSON.stringify(answer)}\n`)
}
