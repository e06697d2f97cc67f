import type { DeadLetterDetails, Failure } from './dead-letters.ts'
import { countOf, manyLines, oneLine } from './plain-text.ts'
import { writeFacts } from './table.ts'
import type { Terminal } from './terminal.ts'
import { duration, instant } from './time-text.ts'

/** What the reasons mean. */
export const reasons: Readonly<Record<string, string>> = {
  exhausted: 'its last attempt failed',
  discarded: 'the handler discarded it',
  invalid: 'the payload does not fit the schema',
  handler_gone: 'no handler has this name any more',
}

/** A dead letter in full: what it is, the payload, every failed attempt with its stack, and what to do. */
export function writeDeadLetter(terminal: Terminal, letter: DeadLetterDetails, now: Date): void {
  writeFacts(terminal, [
    ['Dead letter', letter.id],
    ['Event', `${letter.eventId} ${letter.eventName}, published ${instant(letter.publishedAt, now)}`],
    ['Handler', letter.handler],
    ['Died', instant(letter.diedAt, now)],
    ['Reason', `${letter.reason}: ${reasons[letter.reason] ?? ''}; ${countOf(letter.attempts, 'attempt')}`],
    ...(letter.headers === null ? [] : [['Headers', JSON.stringify(letter.headers)] as const]),
  ])
  if (letter.failures.length === 0) {
    terminal.write(`\n${oneLine(letter.errorClass)}\n${manyLines(letter.errorMessage, '  ')}\n`)
  }
  for (const [index, failure] of letter.failures.entries()) {
    terminal.write(`\n${failureText(failure, letter.failures[index - 1], now)}\n`)
  }
  terminal.write(`\nPayload\n${manyLines(indented(letter.payload), '  ')}\n`)
  terminal.write(`\nTry it again: loopless dead redrive ${letter.id}\n`)
}

function failureText(failure: Failure, earlier: Failure | undefined, now: Date): string {
  const { attempt, beganAt, endedAt, errorClass, errorMessage, errorStack } = failure
  const title = `Attempt ${attempt}, ${instant(endedAt, now)}, took ${duration(endedAt.getTime() - beganAt.getTime())}`
  if (earlier !== undefined && earlier.errorStack === errorStack && earlier.errorMessage === errorMessage) {
    return `${title}\n  the same error`
  }
  const error = errorStack?.includes(errorMessage)
    ? errorStack
    : [`${errorClass}: ${errorMessage}`, errorStack ?? ''].join('\n')
  return `${title}\n${manyLines(error.trimEnd(), '  ')}`
}

/** JSON text with line ends; as it is when a rewrite would change a number. */
function indented(payload: string): string {
  const value: unknown = JSON.parse(payload)
  const isSame = bare(JSON.stringify(value)) === bare(payload)
  return isSame ? JSON.stringify(value, null, 2) : payload
}

function bare(text: string): string {
  return text.replaceAll(/\s/g, '')
}
