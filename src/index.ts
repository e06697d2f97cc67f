// The public surface, in the order of the flow.
export * from './errors.ts'

export type { EventDefinition, InputOf, OutgoingEvent, OutputOf, ReceivedEvent } from './event.ts'
export { defineEvent } from './event.ts'

export type { AnyTransaction } from './db/executor.ts'
export { publish } from './publish.ts'
export type { EventWithOptions, PublishManyOptions } from './publish-many.ts'
export { publishMany } from './publish-many.ts'
export type { PublishOptions } from './publish-options.ts'

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
export { register } from './register.ts'
export type { WakeTarget } from './wake-target.ts'
export { setWake, unsetWake } from './wake-target.ts'

export type { Limits } from './limits.ts'
export type { LogLevel, LogSink } from './log.ts'
export type { PollOptions } from './step.ts'
export { poll } from './poll.ts'
export type { PollReport } from './report.ts'
export type { DrainOptions, DrainReport } from './drain.ts'
export { drain } from './drain.ts'
export type { AttendOptions, PollerPurpose } from './attend-options.ts'
export type { AttendReport } from './attend.ts'
export { attend } from './attend.ts'
export type { HelpOptions } from './fan-out.ts'
export { help } from './fan-out.ts'
export type { HandledMessage, PolledMessage } from './channels.ts'

export type { PruneReport, PruneSettings } from './prune.ts'
export { prune } from './prune.ts'
export { redrive } from './redrive.ts'

export type { ConnectOptions, Sql, TransactionSql } from './db/client.ts'
export { connect } from './db/client.ts'
export type { SignIn } from './db/sign-in.ts'
export type { Migration } from './db/migrate.ts'
export { migrate } from './db/migrate.ts'
export type { CreatedRole, CreateRolesOptions, Part, RoleNames } from './db/roles.ts'
export { createRoles } from './db/roles.ts'
