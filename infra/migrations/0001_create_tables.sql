-- The log, the batches claimed from it, and a row for every exception.
-- Locks: none that others can wait for; every object is new.

create table loopless.bus (
  only_row boolean primary key default true,
  cluster text,
  handler_set text,
  registered_at timestamptz,
  constraint bus_has_one_row check (only_row),
  constraint bus_registered_whole check ((handler_set is null) = (registered_at is null))
);
insert into loopless.bus default values;
comment on table loopless.bus is 'What holds for the whole bus; one row.';
comment on column loopless.bus.only_row is 'Always true: keeps the table at one row.';
comment on column loopless.bus.cluster is 'System identifier of the Postgres cluster that made the last claim; null before the first. Transaction ids are comparable within one cluster only.';
comment on column loopless.bus.handler_set is 'Hash of the registered handlers; a poller with another set claims nothing. Null: nothing registered, no check.';
comment on column loopless.bus.registered_at is 'When the handler set was registered.';

create table loopless.handler (
  name text primary key,
  pattern text not null,
  registered_at timestamptz not null
);
comment on table loopless.handler is 'The registered handlers (loopless register), for people who look and for the check in loopless.claim.';
comment on column loopless.handler.name is 'Unique name; deliveries, attempts and dead letters refer to it.';
comment on column loopless.handler.pattern is 'Event name, or a pattern such as order.* or *.';
comment on column loopless.handler.registered_at is 'When this set was registered.';

create table loopless.event (
  id bigint generated always as identity,
  xid xid8 not null default pg_current_xact_id(),
  published_at timestamptz not null default now(),
  due_at timestamptz,
  bytes integer not null generated always as (octet_length(payload::text)) stored,
  name text not null,
  payload json not null,
  headers json,
  constraint event_name_valid check (length(name) <= 200 and name ~ '^[a-z0-9_-]+(\.[a-z0-9_-]+)*$')
);
-- The position of an event. Claims read this index from the head of the log, retention from its old end.
create unique index event_position_idx on loopless.event (xid, id);
-- A few bytes for each 16 pages: finds an event by id or time without a second b-tree to feed on every publish.
create index event_id_idx on loopless.event using brin (id, published_at) with (pages_per_range = 16, autosummarize = on);
comment on table loopless.event is 'The log: appended once, never updated, until retention removes the oldest.';
comment on column loopless.event.id is 'Unique, ascending in each transaction.';
comment on column loopless.event.xid is 'Transaction that published it; (xid, id) is its position. 0: published in an earlier cluster.';
comment on column loopless.event.published_at is 'Start of the transaction that published it.';
comment on column loopless.event.due_at is 'Null: handled from the log, at once. Otherwise it waits as a delivery until then.';
comment on column loopless.event.bytes is 'Length of the payload as text, in bytes; bounds a claim.';
comment on column loopless.event.name is 'Dotted lower-case words, for example order.placed.';
comment on column loopless.event.payload is 'Any JSON text, kept to the letter.';
comment on column loopless.event.headers is 'JSON object of strings given by the publisher, or null.';
do $$ begin
  alter table loopless.event alter column payload set compression lz4;
exception when feature_not_supported then null; -- a server built without lz4 keeps its default
end $$;

create table loopless.batch (
  id bigint generated always as identity primary key,
  split_from bigint,
  lease uuid,
  leased_until timestamptz not null,
  leases_from timestamptz not null default '-infinity',
  from_snapshot pg_snapshot not null,
  to_snapshot pg_snapshot not null,
  after_xid xid8 not null,
  after_id bigint not null,
  through_xid xid8 not null,
  through_id bigint not null,
  high_id bigint not null,
  size integer not null,
  claimed_at timestamptz,
  settled_at timestamptz,
  constraint batch_size_valid check (size >= 0),
  constraint batch_claimed_when_leased check (lease is null or claimed_at is not null)
);
create index batch_open_idx on loopless.batch (leased_until) where settled_at is null and lease is null;
-- While a session holds an old snapshot, nothing leaves this index: what was settled since then stands at its low
-- end. So a claim looks no lower than leases_from of the newest row.
create index batch_leased_idx on loopless.batch (leased_until) where settled_at is null and lease is not null;
-- The head of the log is the newest row here; parts split from a batch do not move it.
create index batch_head_idx on loopless.batch (id) where split_from is null;
comment on table loopless.batch is 'Slices of the log, one row each. Open: no lease, not settled. Leased: a lease, not settled. Settled: settled_at set.';
comment on column loopless.batch.id is 'Ascending; may be handed out twice around a crash of the server, so the lease is the fence.';
comment on column loopless.batch.split_from is 'The batch whose unstarted part this is; null for a slice cut from the log.';
comment on column loopless.batch.lease is 'Random token of the poll that holds it, or held it last.';
comment on column loopless.batch.leased_until is 'End of the lease; an open batch is free from then on.';
comment on column loopless.batch.leases_from is 'In the newest slice of the log: no batch is leased until an earlier time than this.';
comment on column loopless.batch.from_snapshot is 'The window: events visible in to_snapshot and not in from_snapshot.';
comment on column loopless.batch.to_snapshot is 'End of the window; the next window begins here.';
comment on column loopless.batch.after_xid is 'The slice begins after position (after_xid, after_id).';
comment on column loopless.batch.after_id is 'See after_xid.';
comment on column loopless.batch.through_xid is 'The slice ends with position (through_xid, through_id).';
comment on column loopless.batch.through_id is 'See through_xid.';
comment on column loopless.batch.high_id is 'Highest event id given out when the window was opened; tells a restored event from a new one.';
comment on column loopless.batch.size is 'Events in the slice.';
comment on column loopless.batch.claimed_at is 'The poll''s now at the last claim.';
comment on column loopless.batch.settled_at is 'The poll''s now when nothing was left to do in the batch itself; failures live on as deliveries.';
-- The baseline: what committed before the installation is outside every window.
insert into loopless.batch (leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size, settled_at)
select now(), s, s, '0', 0, '0', 0, 0, 0, now() from pg_current_snapshot() s;

create table loopless.delivery (
  id bigint generated always as identity primary key,
  event_xid xid8 not null,
  event_id bigint not null,
  handler text,
  reason text not null,
  due_at timestamptz not null,
  attempt integer not null default 0,
  alone boolean not null default false,
  lease uuid,
  constraint delivery_reason_known check (reason in ('delayed', 'retry', 'released', 'recovered', 'rebased', 'redriven')),
  constraint delivery_attempt_valid check (attempt between 0 and 65535),
  constraint delivery_attempt_has_handler check (attempt = 0 or handler is not null)
);
create unique index delivery_event_idx on loopless.delivery (event_id, coalesce(handler, ''));
-- Each row is in exactly one of these three, so no scan walks over rows that it does not want.
create index delivery_due_idx on loopless.delivery (due_at, id) where lease is null and not alone;
create index delivery_alone_idx on loopless.delivery (due_at, id) where lease is null and alone;
create index delivery_leased_idx on loopless.delivery (due_at, id) where lease is not null;
comment on table loopless.delivery is 'The exceptions: an event that waits for a handler, because it was delayed, failed, released or its poller died.';
comment on column loopless.delivery.id is 'Identifies the row while it exists.';
comment on column loopless.delivery.event_xid is 'Position of the event, with event_id.';
comment on column loopless.delivery.event_id is 'The event.';
comment on column loopless.delivery.handler is 'The handler it waits for; null: every handler that matches when it is due.';
comment on column loopless.delivery.reason is 'delayed: published with a due time. retry: the handler failed. released: not started before a deadline. recovered: its poller died. rebased: the database moved to another cluster. redriven: taken back from the dead letters.';
comment on column loopless.delivery.due_at is 'Free to be claimed from then on; while leased, the end of the lease.';
comment on column loopless.delivery.attempt is 'Attempts charged so far; 0: none.';
comment on column loopless.delivery.alone is 'A poller died while it ran this among others: it runs with nothing beside it, so that a second death finds the guilty one.';
comment on column loopless.delivery.lease is 'Random token of the poll that holds it; null: free.';

create table loopless.attempt (
  id bigint generated always as identity primary key,
  event_id bigint not null,
  handler text not null,
  attempt integer not null,
  began_at timestamptz not null,
  ended_at timestamptz not null,
  error_class text not null,
  error_message text not null,
  error_stack text,
  constraint attempt_number_valid check (attempt between 1 and 65535),
  constraint attempt_ends_after_it_began check (ended_at >= began_at)
);
create index attempt_event_idx on loopless.attempt (event_id);
create index attempt_ended_idx on loopless.attempt (ended_at);
comment on table loopless.attempt is 'Every failed attempt of a handler.';
comment on column loopless.attempt.id is 'Order of recording.';
comment on column loopless.attempt.event_id is 'The event.';
comment on column loopless.attempt.handler is 'The handler that failed.';
comment on column loopless.attempt.attempt is 'Its number, from 1; starts again after a redrive.';
comment on column loopless.attempt.began_at is 'When the handler was called.';
comment on column loopless.attempt.ended_at is 'When it failed, or was given up.';
comment on column loopless.attempt.error_class is 'Name of the error, or TimeoutError, PollerDiedError, NonError.';
comment on column loopless.attempt.error_message is 'Message of the error, shortened to 8 KiB.';
comment on column loopless.attempt.error_stack is 'Stack with causes, shortened to 16 KiB.';

create table loopless.dead_letter (
  id bigint generated always as identity primary key,
  event_xid xid8 not null,
  event_id bigint not null,
  handler text not null,
  reason text not null,
  attempts integer not null,
  error_class text not null,
  error_message text not null,
  died_at timestamptz not null,
  constraint dead_letter_reason_known check (reason in ('exhausted', 'discarded', 'invalid', 'handler_gone')),
  constraint dead_letter_attempts_valid check (attempts between 0 and 65535),
  constraint dead_letter_exhausted_was_tried check (reason <> 'exhausted' or attempts > 0)
);
create unique index dead_letter_event_idx on loopless.dead_letter (event_id, handler);
create index dead_letter_died_idx on loopless.dead_letter (died_at);
comment on table loopless.dead_letter is 'Events a handler is done with, without success; kept so that they can be read and redriven.';
comment on column loopless.dead_letter.id is 'For loopless dead show and redrive.';
comment on column loopless.dead_letter.event_xid is 'Position of the event, with event_id.';
comment on column loopless.dead_letter.event_id is 'The event.';
comment on column loopless.dead_letter.handler is 'The handler that gave up.';
comment on column loopless.dead_letter.reason is 'exhausted: its last attempt failed. discarded: the handler said so. invalid: the payload does not fit the schema. handler_gone: no such handler any more.';
comment on column loopless.dead_letter.attempts is 'Attempts charged.';
comment on column loopless.dead_letter.error_class is 'Of the last error.';
comment on column loopless.dead_letter.error_message is 'Of the last error, shortened to 8 KiB.';
comment on column loopless.dead_letter.died_at is 'The poll''s now.';

create table loopless.dedupe_key (
  event_name text not null,
  key text not null,
  event_id bigint not null,
  expires_at timestamptz not null,
  primary key (event_name, key),
  constraint dedupe_key_length_valid check (length(key) between 1 and 512)
);
create index dedupe_key_expires_idx on loopless.dedupe_key (expires_at);
comment on table loopless.dedupe_key is 'Keys of published events: a second publish with the same key writes nothing.';
comment on column loopless.dedupe_key.event_name is 'Keys are per event name.';
comment on column loopless.dedupe_key.key is 'As given by the publisher.';
comment on column loopless.dedupe_key.event_id is 'The event that was published first.';
comment on column loopless.dedupe_key.expires_at is 'From then on the key is free again.';
