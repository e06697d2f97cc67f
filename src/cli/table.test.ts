import { expect, it } from 'vitest'
import { writeFacts, writeTable } from './table.ts'
import type { Terminal } from './terminal.ts'

function terminal(columns: number, isColoured = false): Terminal & { out: string } {
  return {
    env: {},
    columns,
    isColoured,
    out: '',
    write(text) {
      this.out += text
    },
    writeError() {},
    readInput: async () => '',
  }
}

it('aligns columns under their titles', () => {
  const screen = terminal(80)
  writeTable(
    screen,
    [{ title: 'EVENT' }, { title: 'DEAD', align: 'right' }, { title: 'WHY' }],
    [
      ['order.placed', '1', 'x'],
      ['a', '1,000', ''],
    ],
  )
  expect(screen.out).toBe('EVENT          DEAD  WHY\norder.placed      1  x\na             1,000\n')
})

it('cuts the column that may shrink, then the widest, and never passes the width', () => {
  const long = 'x'.repeat(60)
  const screen = terminal(40)
  writeTable(screen, [{ title: 'A', shrinks: true }, { title: 'B' }], [[long, 'short']])
  expect(screen.out.split('\n')[1]).toBe(`${'x'.repeat(32)}…  short`)
  screen.out = ''
  writeTable(screen, [{ title: 'A', shrinks: true }, { title: 'B' }, { title: 'C' }], [[long, long, long]])
  for (const line of screen.out.split('\n')) expect(line.length).toBeLessThanOrEqual(40)
})

it('puts facts in two columns, on one line each', () => {
  const screen = terminal(20)
  writeFacts(screen, [
    ['Event', '12'],
    ['Published', 'a\nlong time ago'],
  ])
  expect(screen.out).toBe('Event      12\nPublished  a long t…\n')
})

it('is bold on a terminal with colours only', () => {
  const screen = terminal(80, true)
  writeFacts(screen, [['Event', '12']])
  expect(screen.out).toBe('\u001b[1mEvent\u001b[22m  12\n')
})
