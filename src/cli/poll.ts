import { Console } from 'node:console'
import { Command, InvalidArgumentError } from 'commander'
import { type DrainReport, drain } from '../drain.ts'
import type { LogSink } from '../log.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { builtHandlers, loadHandlers } from './load-handlers.ts'
import { count, countOf, oneLine } from './plain-text.ts'
import { type Terminal, writeJson } from './terminal.ts'
import { duration, instant } from './time-text.ts'

interface PollCommandOptions extends CommonOptions {
  readonly handlers: string
  readonly seconds: number
}

export function pollCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('poll'))
    .summary('handle what is due, once')
    .description(
      'Drains the bus with the built handlers: polls until nothing is due or the time is over. What it did not start ' +
        'stays free for others. Ctrl-C ends it the same way. Handlers log to the standard error.',
    )
    .option('--handlers <path>', 'the built handlers', builtHandlers)
    .option('--seconds <number>', 'end by then', parseSeconds, 60)
    .addHelpText(
      'after',
      `
Examples:
  $ loopless poll
  $ loopless poll --seconds 10 --json`,
    )
    .action(async (options: PollCommandOptions) => {
      // what handlers print: the standard output is for the report
      globalThis.console = new Console(process.stderr, process.stderr)
      const handlers = await loadHandlers(options.handlers)
      const { report, now, tookMs } = await untilSignal((signal) =>
        withDatabase(terminal, options, async ({ sql, now }) => {
          const beganMs = performance.now()
          // the database's clock, carried on by this machine's
          const clock = (): Date => new Date(now.getTime() + performance.now() - beganMs)
          const deadline = new Date(now.getTime() + options.seconds * 1000)
          const report = await drain({ sql, handlers, clock, deadline, signal, log: logTo(terminal) })
          return { report, now: clock(), tookMs: performance.now() - beganMs }
        }),
      )
      if (options.json) return writeJson(terminal, report)
      terminal.write(describe(report, now, tookMs))
    })
}

/** Ctrl-C and SIGTERM once: give back what was not started. Twice: end at once. */
async function untilSignal<Result>(run: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
  const controller = new AbortController()
  const stop = (): void => controller.abort()
  process.once('SIGINT', stop)
  process.once('SIGTERM', stop)
  try {
    return await run(controller.signal)
  } finally {
    process.off('SIGINT', stop)
    process.off('SIGTERM', stop)
  }
}

function logTo(terminal: Terminal): LogSink {
  return (level, message, fields) => {
    terminal.writeError(`${level} ${oneLine(message)} ${JSON.stringify(fields)}\n`)
  }
}

function describe(report: DrainReport, now: Date, tookMs: number): string {
  const { claimed, polls, succeeded, retried, dead, unhandled, released, repaired, nextDueAt, drained } =
    report
  const runs = [
    `${count(succeeded)} succeeded`,
    `${count(retried)} to be tried again`,
    `${count(dead)} dead`,
    ...(unhandled > 0 ? [`${count(unhandled)} without a handler`] : []),
    ...(released > 0 ? [`${count(released)} given back`] : []),
    ...(repaired > 0 ? [`${count(repaired)} freed from dead pollers`] : []),
  ]
  const waits = nextDueAt === null ? 'Nothing waits.' : `Next due ${instant(nextDueAt, now)}.`
  return [
    `Claimed ${countOf(claimed, 'event')} in ${countOf(polls, 'poll')}, ${duration(tookMs)}.`,
    ...(claimed + repaired > 0 ? [`Runs: ${runs.join(', ')}.`] : []),
    drained ? waits : `Stopped before everything was done. ${waits}`,
    ...(dead > 0 ? ['Look at the dead letters: loopless dead list'] : []),
    '',
  ].join('\n')
}

function parseSeconds(text: string): number {
  const seconds = Number(text)
  if (text.trim() !== '' && seconds >= 1 && seconds <= 86_400) return seconds
  throw new InvalidArgumentError('Expected 1–86400 seconds.')
}
