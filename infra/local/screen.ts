import { stripVTControlCharacters, styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

const { stdout } = process
const width = 80
/** What a live line shows now; empty when there is none. */
let live = ''
let isSilent = false

/** Colours a text, where the output is a terminal that wants it. */
export function paint(style: Style, text: string): string {
  return styleText(style, text, { stream: stdout })
}

/** Writes a last line; nothing is written from then on. */
export function sayLast(text: string): void {
  clearLive()
  print(text)
  isSilent = true
}

/** Writes lines above the live one; none: an empty line. */
export function print(text = ''): void {
  if (isSilent) return
  const kept = live
  clearLive()
  const indented = text.split('\n').map((line) => (line === '' ? '' : `  ${line}`))
  stdout.write(`${indented.join('\n')}\n`)
  if (kept !== '') showLive(kept)
}

/** Shows a line that the next one replaces; only a terminal shows it. */
export function showLive(text: string): void {
  if (!stdout.isTTY || isSilent) return
  clearLive()
  live = text
  stdout.write(`  ${text}`)
}

/** Ends the live line and leaves it on the screen. */
export function keepLive(): void {
  if (live !== '') stdout.write('\n')
  live = ''
}

function clearLive(): void {
  if (live !== '') stdout.write('\r\u001b[K')
  live = ''
}

/** Does a step and writes a line for it, with what it said of itself and how long it took. */
export async function step<Result>(
  title: string,
  run: () => Promise<Result>,
  say: (result: Result) => string,
): Promise<Result> {
  const beganMs = performance.now()
  showLive(paint('dim', `· ${title} …`))
  try {
    const result = await run()
    const seconds = `${((performance.now() - beganMs) / 1000).toFixed(1)} s`
    const text = say(result)
    clearLive()
    print(`${paint('green', '✓')} ${text.padEnd(width - 6 - seconds.length)} ${paint('dim', seconds)}`)
    return result
  } catch (error) {
    clearLive()
    print(`${paint('red', '✗')} ${title}`)
    throw error
  }
}

/** A table: a header and rows, numbers to the right; the last column may be as long as it likes. */
export function table(
  header: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string | number>>,
): string {
  const widths = header.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => String(row[column] ?? '').length)),
  )
  const isNumber = header.map((_, column) => rows.every((row) => typeof row[column] === 'number'))
  const line = (cells: ReadonlyArray<string | number>): string =>
    cells
      .map((cell, column) =>
        isNumber[column]
          ? String(cell).padStart(widths[column] ?? 0)
          : String(cell).padEnd(widths[column] ?? 0),
      )
      .join('   ')
      .trimEnd()
  return [paint('dim', line(header)), ...rows.map(line)].join('\n')
}

/** Breaks a text into lines that fit; what is indented is left as it is. */
export function wrap(text: string, columns = width - 4): string {
  if (text.startsWith(' ')) return text
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const longer = `${lines.at(-1)} ${word}`
    if (lines.length > 0 && stripVTControlCharacters(longer).length <= columns) lines.splice(-1, 1, longer)
    else lines.push(word)
  }
  return lines.join('\n')
}
