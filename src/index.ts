// The public surface, in the order of the flow.

// polling
export type { HandledMessage, PolledMessage } from './channels.ts'
// the database
export type { ConnectOptions, Sql, TransactionSql } from './db/client.ts'
export { connect } from './db/client.ts'

// publishing
export type { AnyTransaction } from './db/executor.ts'
export { migrate } from './db/migrate.ts'
export type { DrainOptions, DrainReport } from './drain.ts'
export { drain } from './drain.ts'
export * from './errors.ts'
// events
export type { EventDefinition, InputOf, OutgoingEvent, OutputOf, ReceivedEvent } from './event.ts'
export { defineEvent } from './event.ts'
// handlers
export type {
  BaseContext,
  BatchEvent,
  BatchResult,
  Handler,
  HandlerContext,
  HandlerLog,
  HandlerOptions,
  WithTransaction,
} from './handler.ts'
export { defineHandler, isHandler } from './handler.ts'
export type { HandlerSet, NamedHandler } from './handler-set.ts'
export { defineHandlers } from './handler-set.ts'
export type { Limits } from './limits.ts'
export type { LogLevel, LogSink } from './log.ts'
export type { PollOptions } from './poll.ts'
export { poll } from './poll.ts'
// keeping house
export type { PruneReport, PruneSettings } from './prune.ts'
export { prune } from './prune.ts'
export { publish } from './publish.ts'
export type { EventWithOptions, PublishManyOptions } from './publish-many.ts'
export { publishMany } from './publish-many.ts'
export type { PublishOptions } from './publish-options.ts'
export { redrive } from './redrive.ts'
export { register } from './register.ts'
export type { PollReport } from './report.ts'
