import { Command } from 'commander'
import { type BatchCount, type BusStatus, readStatus } from './bus-status.ts'
import { type Counted, countedTo } from './counted.ts'
import { addCommonOptions, type CommonOptions, withDatabase } from './database.ts'
import { count, countOf } from './plain-text.ts'
import { writeFacts, writeTable } from './table.ts'
import { type Terminal, writeJson } from './terminal.ts'
import { instant, relative } from './time-text.ts'
import type { WakeFailure } from './wake-status.ts'

const mostNames = 25

export function statusCommand(terminal: Terminal): Command {
  return addCommonOptions(new Command('status'))
    .summary('what waits, what is under way, what is dead')
    .description(
      `Shows the state of the bus at one moment. Of each kind of row ${count(countedTo)} are counted one by one; beyond ` +
        'that the backlog is estimated ("about") and the others have a "+". It answers 0 whatever it finds.',
    )
    .addHelpText(
      'after',
      `
Backlog: events that no poll has claimed yet. Due, later: deliveries, which are
the exceptions: delayed, to be tried again, given back. Dead: given up.
Wakes sent: invocations that publishes asked for, whatever became of them.

Examples:
  $ loopless status
  $ loopless status --json | jq .backlog.oldestAt`,
    )
    .action(async (options: CommonOptions) => {
      const status = await withDatabase(terminal, options, ({ sql, now }) => readStatus(sql, now))
      if (options.json) return writeJson(terminal, { ...status, countedTo })
      writeFacts(terminal, factsOf(status))
      writeEvents(terminal, status)
      writeHandlers(terminal, status)
    })
}

function factsOf(status: BusStatus): [string, string][] {
  const { backlog, batches, deliveries, dead, isMoved, now } = status
  const { leased, leasedUntil, expired, open } = batches
  const facts: [string, string | false][] = [
    ['Moved', isMoved && 'from another cluster: no count is right before the next poll here'],
    ['Backlog', `${backlog.isEstimate ? 'about ' : ''}${countOf(backlog.events, 'event')}`],
    ['Oldest', backlog.oldestAt !== null && instant(backlog.oldestAt, now)],
    ['Under way', underWay(leased, deliveries.leased)],
    ['Lease ends', leasedUntil !== null && instant(leasedUntil, now)],
    ['Given back', open.batches > 0 && `${sizeOf(open)}: free to be claimed`],
    ['Poller died', expired.batches > 0 && `${sizeOf(expired)}: the next poll runs them again`],
    ['Due', deliveriesOf(deliveries.due)],
    ['Due later', deliveriesOf(deliveries.later)],
    ['Next due', deliveries.nextDueAt !== null && instant(deliveries.nextDueAt, now)],
    ['Dead', dead.count === 0 ? 'none' : `${amount(dead)}: see loopless dead list`],
    ...wakeFacts(status),
  ]
  return facts.flatMap(([label, fact]) => (fact === false ? [] : [[label, fact] as [string, string]]))
}

function wakeFacts({ wake, now }: BusStatus): [string, string | false][] {
  const { target, awakeUntil, sent, failures, lastFailure } = wake
  if (target === null) return [['Wake', 'off: the schedule alone polls']]
  const isAwake = awakeUntil !== null && awakeUntil > now
  return [
    ['Wake', `${target.functionArn}${target.region === null ? '' : ` in ${target.region}`}`],
    [
      'Awake',
      awakeUntil !== null &&
        (isAwake ? 'a poller, or it is on its way' : 'nobody: the next publish wakes one'),
    ],
    ['Wakes sent', sent !== null && count(sent)],
    ...(lastFailure === null ? [] : failureFacts(failures, lastFailure, now)),
  ]
}

function failureFacts(failures: Counted, last: WakeFailure, now: Date): [string, string][] {
  return [
    ['Wakes failed', `${amount(failures)}, the last ${relative(last.at, now)}: see loopless wake test`],
    ['', last.message],
  ]
}

function underWay(leased: BatchCount, single: Counted): string {
  const parts = [
    ...(leased.batches > 0 ? [sizeOf(leased)] : []),
    ...(single.count > 0 ? [deliveriesOf(single)] : []),
  ]
  return parts.join('; ') || 'nothing'
}

function sizeOf({ batches, events }: BatchCount): string {
  return `${countOf(batches, 'batch')}, ${countOf(events, 'event')}`
}

function deliveriesOf(counted: Counted): string {
  return counted.isMore ? `${amount(counted)} deliveries` : countOf(counted.count, 'delivery')
}

function writeEvents(terminal: Terminal, { events, backlog, deliveries, dead }: BusStatus): void {
  if (events.length === 0) return
  terminal.write('\n')
  const numbers = ['BACKLOG', 'DUE', 'LATER', 'LEASED', 'DEAD'].map((title) => ({
    title,
    align: 'right' as const,
  }))
  writeTable(
    terminal,
    [{ title: 'EVENT', shrinks: true }, ...numbers],
    events
      .slice(0, mostNames)
      .map(({ name, backlog, due, later, leased, dead }) => [
        name,
        ...[backlog, due, later, leased, dead].map(count),
      ]),
  )
  const isMore =
    backlog.isEstimate ||
    [deliveries.due, deliveries.later, deliveries.leased, dead].some((one) => one.isMore)
  if (events.length > mostNames)
    terminal.write(`… and ${events.length - mostNames} more: --json has them all\n`)
  if (isMore) terminal.write(`Of each column the first ${count(countedTo)} were counted.\n`)
}

function writeHandlers(terminal: Terminal, { registered, now }: BusStatus): void {
  if (registered === null) {
    terminal.write('\nNo handlers are registered: any poller may claim. See loopless register.\n')
    return
  }
  const { handlers, handlerSet, at } = registered
  const what = `${countOf(handlers.length, 'handler')}, set ${handlerSet.slice(0, 12)}`
  terminal.write(`\nRegistered ${relative(at, now)}: ${what}\n`)
  if (handlers.length === 0) return
  terminal.write('\n')
  writeTable(
    terminal,
    [{ title: 'HANDLER' }, { title: 'TAKES' }],
    handlers.map(({ name, pattern }) => [name, pattern]),
  )
}

function amount({ count: number, isMore }: Counted): string {
  return `${count(number)}${isMore ? '+' : ''}`
}
