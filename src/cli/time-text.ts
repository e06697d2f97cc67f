const units: ReadonlyArray<readonly [string, number]> = [
  ['d', 86_400],
  ['h', 3_600],
  ['min', 60],
  ['s', 1],
]

/** How far from now: `in 12 s`, `3 min ago`, `now` (within half a second). */
export function relative(at: Date, now: Date): string {
  const seconds = (at.getTime() - now.getTime()) / 1000
  if (Math.abs(seconds) < 0.5) return 'now'
  return seconds > 0 ? `in ${span(seconds)}` : `${span(-seconds)} ago`
}

/** The instant and how far it is: `2026-11-24T10:00:00.000Z (in 12 s)`. */
export function instant(at: Date, now: Date): string {
  return Number.isNaN(at.getTime()) ? 'never' : `${at.toISOString()} (${relative(at, now)})`
}

/** Milliseconds: `12 ms`, `1.2 s`. */
export function duration(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`
}

/** The largest unit that gives at least 2, so that little is lost by rounding. */
function span(seconds: number): string {
  const [unit, size] = units.find(([, each]) => seconds >= each * 2) ?? (['s', 1] as const)
  return `${Math.round(seconds / size)} ${unit}`
}
