import { cut, oneLine, widthOf } from './plain-text.ts'
import { bold, type Terminal } from './terminal.ts'

/** A column of a table. */
export interface Column {
  readonly title: string
  readonly align?: 'right'
  /** The column that is cut when the terminal is too narrow. Default: the last. */
  readonly shrinks?: boolean
}

const gap = '  '
const narrowest = 8

/** Writes rows under their titles, aligned, no line wider than the terminal. */
export function writeTable(
  terminal: Terminal,
  columns: ReadonlyArray<Column>,
  rows: ReadonlyArray<ReadonlyArray<string>>,
): void {
  terminal.write(`${tableLines(terminal, columns, rows).join('\n')}\n`)
}

/** The same as lines, the titles first. */
function tableLines(
  terminal: Terminal,
  columns: ReadonlyArray<Column>,
  rows: ReadonlyArray<ReadonlyArray<string>>,
): string[] {
  const cells = rows.map((row) => row.map(oneLine))
  const widths = columns.map(({ title }, index) =>
    Math.max(widthOf(title), ...cells.map((row) => widthOf(row[index] ?? ''))),
  )
  shrink(widths, columns, terminal.columns)
  const lineOf = (row: ReadonlyArray<string>): string =>
    columns
      .map(({ align }, index) => pad(cut(row[index] ?? '', widths[index] ?? 0), widths[index] ?? 0, align))
      .join(gap)
      .trimEnd()
  return [bold(terminal, lineOf(columns.map(({ title }) => title))), ...cells.map(lineOf)]
}

/** Writes labels and what they stand for in two columns; an empty label goes on with the one above. */
export function writeFacts(
  terminal: Terminal,
  facts: ReadonlyArray<readonly [label: string, fact: string]>,
): void {
  const width = Math.max(...facts.map(([label]) => widthOf(label)))
  for (const [label, fact] of facts) {
    const room = terminal.columns - width - gap.length
    terminal.write(`${bold(terminal, pad(label, width))}${gap}${cut(oneLine(fact), room)}\n`)
  }
}

function pad(text: string, width: number, align?: 'right'): string {
  const spaces = ' '.repeat(Math.max(0, width - widthOf(text)))
  return align === 'right' ? spaces + text : text + spaces
}

/** First the columns that may shrink, then the widest, until the line fits. */
function shrink(widths: number[], columns: ReadonlyArray<Column>, most: number): void {
  const total = (): number => widths.reduce((sum, width) => sum + width, gap.length * (widths.length - 1))
  const willing = columns.flatMap(({ shrinks }, index) => (shrinks ? [index] : []))
  for (const index of willing.length > 0 ? willing : [widths.length - 1]) {
    const excess = total() - most
    if (excess > 0) widths[index] = Math.max(narrowest, (widths[index] ?? 0) - excess)
  }
  while (total() > most) {
    const widest = widths.indexOf(Math.max(...widths))
    widths[widest] = (widths[widest] ?? 0) - 1
  }
}
