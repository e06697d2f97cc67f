import type { HandlerLog } from './handler.ts'

export type LogLevel = 'info' | 'warn' | 'error'

/** Where lines go; default: one JSON object a line, on stdout, as CloudWatch Logs reads it. */
export type LogSink = (level: LogLevel, message: string, fields: Readonly<Record<string, unknown>>) => void

export const logJson: LogSink = (level, message, fields) => {
  console[level](JSON.stringify({ level, message, ...fields }))
}

/** A log whose lines carry who speaks. */
export function logFor(sink: LogSink, who: Readonly<Record<string, unknown>>): HandlerLog {
  const at = (level: LogLevel) => (message: string, fields?: Readonly<Record<string, unknown>>) =>
    sink(level, message, { ...who, ...fields })
  return { info: at('info'), warn: at('warn'), error: at('error') }
}
