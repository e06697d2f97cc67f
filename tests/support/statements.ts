import type { ProxyMessage } from './proxy.ts'

/** Reads the messages of a connection, prepared statements included: the text that a Bind is about to run, else null. */
export function statementReader(): (message: ProxyMessage) => string | null {
  const texts = new Map<string, string>()
  return ({ from, type, text }) => {
    if (from === 'server') return null
    const [first = '', second = ''] = text.split('\0', 2)
    if (type === 'P') texts.set(first, second)
    return type === 'B' ? (texts.get(second) ?? null) : null
  }
}
