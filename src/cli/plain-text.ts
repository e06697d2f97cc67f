/** Control characters, which in somebody's data could drive the terminal, and marks that reorder text. */
const controls = /[\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]/gu
const wide =
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u

/** Text of any origin on one line. */
export function oneLine(text: string): string {
  return text.replaceAll(/\s+/g, ' ').trim().replaceAll(controls, '\uFFFD')
}

/** Text of any origin on lines of its own, indented. */
export function manyLines(text: string, indent: string): string {
  return text
    .split(/\r?\n/)
    .map((line) => `${indent}${line.replaceAll('\t', '  ').replaceAll(controls, '\uFFFD')}`.trimEnd())
    .join('\n')
}

/** Columns of a line on a terminal. */
export function widthOf(line: string): number {
  let width = 0
  for (const character of line) width += wide.test(character) ? 2 : 1
  return width
}

/** At most that many columns; … stands for what was cut. */
export function cut(line: string, columns: number): string {
  if (widthOf(line) <= columns) return line
  let kept = ''
  let width = 1
  for (const character of line) {
    width += wide.test(character) ? 2 : 1
    if (width > columns) break
    kept += character
  }
  return `${kept.trimEnd()}…`
}

/** 1234567 → 1,234,567 */
export function count(number: number): string {
  return number.toLocaleString('en-US')
}

/** `1 event`, `2 events`. */
export function countOf(number: number, noun: string): string {
  if (number === 1) return `1 ${noun}`
  return `${count(number)} ${noun.endsWith('y') ? `${noun.slice(0, -1)}ies` : noun.endsWith('ch') ? `${noun}es` : `${noun}s`}`
}
