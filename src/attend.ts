import { setTimeout as sleep } from 'node:timers/promises'
import { type AttendOptions, type AttendSettings, resolveAttendSettings } from './attend-options.ts'
import { type DrainReport, drain, emptyDrainReport } from './drain.ts'
import { type FanOut, openFanOut } from './fan-out.ts'
import { checkHandlerSet } from './handler-set.ts'
import { goIdle, markAwake } from './idle.ts'
import { addReport } from './report.ts'
import { deadlineBeforeSuccession, invokeSuccessor } from './succession.ts'

export interface AttendReport extends DrainReport {
  /**
   * `idle`: nothing was left, and the next publish invokes another poller. `impatient`: a publisher stayed in flight
   * too long, and what it publishes waits for the next wake. `continued`: another poller was invoked to go on.
   * `stopped`: the signal, or the deadline when nobody could be invoked; what is left waits for the next wake.
   */
  ended: 'idle' | 'impatient' | 'continued' | 'stopped'
  /** Helpers that were invoked. */
  helpers: number
}

/** The mark is kept that far ahead: so long nobody is invoked in place of a poller that died. */
const awakeMs = 2_000
const markEveryMs = 500
/** For the successor to start. */
const successorMs = 5_000
/** Between two looks: twice as long each time, up to the longest. */
const firstPauseMs = 2
const longestPauseMs = 20

/** An attendance under way. */
interface Attendance {
  readonly options: AttendOptions
  readonly settings: AttendSettings
  readonly report: AttendReport
  /** The drains end by then. */
  readonly deadline: Date
  readonly fanOut: FanOut
}

/**
 * What a poller does that was woken: drains, looks again for a while, and goes idle by the handshake with publishers, so
 * that no wake is lost. Near its deadline with something left, it invokes one successor. With a long backlog it invokes
 * helpers, which only drain (`help`).
 * @throws as `drain`; InvalidOptionError. When it throws, publishers invoke the next poller after at most 2 s.
 */
export async function attend(options: AttendOptions): Promise<AttendReport> {
  checkHandlerSet(options.handlers) // before publishers rely on this poller
  const settings = resolveAttendSettings(options)
  const report: AttendReport = { ...emptyDrainReport(), ended: 'stopped', helpers: 0 }
  const { sql, clock, invoke } = options
  const deadline = deadlineBeforeSuccession(options.deadline, clock())
  const fanOut = openFanOut({
    ...settings,
    sql,
    clock,
    maxPollers: invoke ? settings.maxPollers : 1,
    invoke: async () => invoke?.('help'),
  })
  try {
    report.ended = await stay({ options, settings, report, deadline, fanOut })
  } finally {
    report.helpers = await fanOut.end()
  }
  return report
}

async function stay(attendance: Attendance): Promise<AttendReport['ended']> {
  const { options, settings, report, deadline, fanOut } = attendance
  const { sql, clock, signal } = options
  const stayAwake = marker(options)
  let quietSinceMs = performance.now()
  let pauseMs = firstPauseMs
  for (;;) {
    await stayAwake()
    const one = await drain({
      ...options,
      deadline,
      onPoll: async () => {
        await stayAwake()
        await fanOut.look()
      },
    })
    addDrain(report, one)
    if (one.claimed > 0) {
      quietSinceMs = performance.now()
      pauseMs = firstPauseMs
    }
    if (signal?.aborted) {
      await goIdle(sql, clock(), false)
      return 'stopped'
    }
    const quietMs = performance.now() - quietSinceMs
    const isLate = clock().getTime() + longestPauseMs >= deadline.getTime()
    if (quietMs >= settings.lingerMs || isLate) {
      const answer = await goIdle(sql, clock(), true)
      if (answer === 'idle') return 'idle'
      if (isLate) return succeed(options)
      if (quietMs >= settings.lingerMs + settings.patienceMs) {
        await goIdle(sql, clock(), false)
        return 'impatient'
      }
    }
    await sleep(pauseMs)
    pauseMs = Math.min(2 * pauseMs, longestPauseMs)
  }
}

/** Sets the mark ahead, unless it did a moment ago. */
function marker({ sql }: AttendOptions): () => Promise<void> {
  let dueMs = 0
  return async () => {
    if (performance.now() < dueMs) return
    dueMs = performance.now() + markEveryMs
    await markAwake(sql, awakeMs)
  }
}

/** Hands over to one successor: publishers rely on it from now on, as on this poller. */
async function succeed({ sql, clock, invoke }: AttendOptions): Promise<AttendReport['ended']> {
  if (invoke === undefined) {
    await goIdle(sql, clock(), false)
    return 'stopped'
  }
  await markAwake(sql, successorMs)
  return (await invokeSuccessor(sql, clock(), invoke)) ? 'continued' : 'stopped'
}

function addDrain(sum: AttendReport, one: DrainReport): void {
  addReport(sum, one)
  sum.polls += one.polls
  sum.leasesLost += one.leasesLost
  sum.drained = one.drained
}
