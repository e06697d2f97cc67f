-- Waking: a publish invokes a poller when none is awake, and a poller goes idle without losing what relied on it.
-- Locks: creating the trigger waits for transactions that have published and holds up publishers until this commits.
-- At run time, and only when a target is set, a publisher takes the advisory lock (1280262992, 4) shared, to the end of
-- its transaction. A poller that goes idle tries it exclusively, for one statement, and never waits for it.
--
-- No wake is lost: a poller goes idle only while no publisher is in flight, after it has looked once more. A publisher
-- that comes later gets the lock only when the mark says that nobody is awake.

create table loopless.wake_target (
  only_row boolean primary key default true,
  function_arn text not null,
  region text,
  timeout_ms integer not null default 1000,
  set_at timestamptz not null,
  constraint wake_target_has_one_row check (only_row),
  constraint wake_target_arn_given check (length(function_arn) between 1 and 2048),
  constraint wake_target_timeout_valid check (timeout_ms between 1 and 60000)
);
comment on table loopless.wake_target is 'Whom a publish invokes when no poller is awake; no row: nobody, the schedule alone polls.';
comment on column loopless.wake_target.only_row is 'Always true: keeps the table at one row.';
comment on column loopless.wake_target.function_arn is 'ARN or name of the Lambda function.';
comment on column loopless.wake_target.region is 'Its region; null: that of the ARN, or of the database.';
comment on column loopless.wake_target.timeout_ms is 'A publish waits no longer than that for Lambda to answer, to connect, and again for the request.';
comment on column loopless.wake_target.set_at is 'When it was set.';

create table loopless.wake_failure (
  id bigint generated always as identity primary key,
  failed_at timestamptz not null,
  error_code text not null,
  error_message text not null
);
create index wake_failure_failed_idx on loopless.wake_failure (failed_at);
comment on table loopless.wake_failure is 'Wakes that the database could not send; publishing went on. Kept as long as attempts are.';
comment on column loopless.wake_failure.id is 'Order of recording.';
comment on column loopless.wake_failure.failed_at is 'By the server''s clock.';
comment on column loopless.wake_failure.error_code is 'SQLSTATE, or STATUS when Lambda answered with another status than 202.';
comment on column loopless.wake_failure.error_message is 'What the extension said, shortened to 8 KiB.';

-- Sequences, because they are not part of any transaction: what one publisher sets is seen at once by those right behind
-- it, before it commits and at any isolation level, and nobody waits for a row lock.
create sequence loopless.wake_mark as bigint minvalue 0 start 0;
select setval('loopless.wake_mark', 0);
comment on sequence loopless.wake_mark is 'Milliseconds since 1970, by the server''s clock, until which a poller is presumed awake or on its way. In the past: nobody is.';
create sequence loopless.wake_count as bigint minvalue 0 start 0;
comment on sequence loopless.wake_count is 'Wakes that the database has sent, or tried to.';

-- Sets the mark that many milliseconds ahead of the server's clock; 0: nobody is awake.
create function loopless.mark_awake(ms integer) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform setval('loopless.wake_mark', case when ms > 0 then floor(date_part('epoch', clock_timestamp()) * 1000)::bigint + ms else 0 end);
end $$;
comment on function loopless.mark_awake(integer) is
  'Says that a poller is awake, or on its way, for so many milliseconds; 0: that none is.';

-- For one that receives wakes from a stand-in that sends them at the commit: true when nobody was awake, and then the
-- mark is ahead: invoke. Wakes of one burst come to one invocation.
create function loopless.begin_waking() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_sequence_last_value('loopless.wake_mark') > date_part('epoch', clock_timestamp()) * 1000 then
    return false;
  end if;
  perform loopless.mark_awake(5000);
  return true;
end $$;
comment on function loopless.begin_waking() is
  'True when nobody was awake: the caller is to invoke a poller, and the mark says so for 5 s.';

-- Asks Lambda, for no longer than the target says; returns the status that it answered, 202 when it takes the wake.
create function loopless.invoke_target(target loopless.wake_target) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  connect_timeout text := current_setting('aws_lambda.connect_timeout_ms', true);
  request_timeout text := current_setting('aws_lambda.request_timeout_ms', true);
  status integer;
begin
  begin
    perform set_config('aws_lambda.connect_timeout_ms', target.timeout_ms::text, true);
    perform set_config('aws_lambda.request_timeout_ms', target.timeout_ms::text, true);
  exception when others then
    null; -- not allowed here: then those of the server hold
  end;
  execute
    'select i.status_code from aws_lambda.invoke(aws_commons.create_lambda_function_arn($1, $2), $3, ''Event'') i'
    into status using target.function_arn, target.region, json '{"loopless":"wake"}';
  if connect_timeout is not null then -- the publisher's own invocations, if any, keep theirs
    perform set_config('aws_lambda.connect_timeout_ms', connect_timeout, true);
    perform set_config('aws_lambda.request_timeout_ms', request_timeout, true);
  end if;
  return status;
end $$;
comment on function loopless.invoke_target(loopless.wake_target) is
  'Asks Lambda to run the target; returns the status that it answered.';

-- Invokes the target, once a transaction. The mark goes ahead first, for 5 s: publishers right behind do not invoke
-- again, and when the invocation is lost, or fails, the next publisher after that repeats it.
-- A stand-in for aws_lambda that sends at the commit says so by having a function aws_lambda.invokes_at_commit(): a
-- transaction that rolls back never sends, so there the receiver sets the mark (loopless.begin_waking).
-- Whatever goes wrong here is recorded, and is never the publisher's failure; but the cancel of its statement is.
create function loopless.send_wake() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  target loopless.wake_target;
  status integer;
  detail text;
begin
  if current_setting('loopless.woken', true) = 'on' then
    return;
  end if;
  select t.* into target from loopless.wake_target t where t.only_row;
  if not found then
    return;
  end if;
  perform set_config('loopless.woken', 'on', true);
  perform nextval('loopless.wake_count');
  -- Asked of the catalog: to look the function up by its name needs a right on the schema, and fails without it.
  if not exists (
    select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'aws_lambda' and p.proname = 'invokes_at_commit'
  ) then
    perform loopless.mark_awake(5000);
  end if;
  begin
    status := loopless.invoke_target(target);
    if status is distinct from 202 then
      insert into loopless.wake_failure (failed_at, error_code, error_message)
      values (clock_timestamp(), 'STATUS', format('Expected Lambda to answer 202 to an asynchronous invocation, got %s.', coalesce(status::text, 'nothing')));
    end if;
  exception when others then
    get stacked diagnostics detail = pg_exception_detail; -- where the extension has what Lambda said
    insert into loopless.wake_failure (failed_at, error_code, error_message)
    values (clock_timestamp(), sqlstate, left(concat_ws(': ', sqlerrm, nullif(detail, '')), 8192));
  end;
end $$;
comment on function loopless.send_wake() is
  'Invokes the target, once a transaction; what fails is recorded.';

-- For loopless wake test: invokes the target whoever is awake, with the rights by which a publish does.
create function loopless.test_wake() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  target loopless.wake_target;
begin
  select t.* into target from loopless.wake_target t where t.only_row;
  if not found then
    return null;
  end if;
  return loopless.invoke_target(target);
end $$;
comment on function loopless.test_wake() is
  'Invokes the target now and returns the status that Lambda answered; null: no target is set.';

-- The publisher's part of the handshake, after each statement that publishes. Each publish pays for it. So it makes do
-- without a query, which plpgsql can when all it needs is the value of a function (2026-11-25: 4 us a statement; with
-- queries for the target, the lock and the mark 13 us), and looks for a target only when nobody is awake.
create function loopless.wake_on_publish() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_advisory_xact_lock_shared(1280262992, 4) is null then -- void is never null: this only calls it
    return null;
  end if;
  if pg_sequence_last_value('loopless.wake_mark') <= date_part('epoch', clock_timestamp()) * 1000 then
    perform loopless.send_wake();
  end if;
  return null;
end $$;
comment on function loopless.wake_on_publish() is
  'After each statement that publishes: invokes a poller when none is awake.';

-- The same in a transaction that makes something due at once without publishing.
create function loopless.wake() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock_shared(1280262992, 4);
  if pg_sequence_last_value('loopless.wake_mark') <= date_part('epoch', clock_timestamp()) * 1000 then
    perform loopless.send_wake();
  end if;
end $$;
comment on function loopless.wake() is
  'Invokes a poller when none is awake; to be called in the transaction that makes something due.';

-- Publishers that wait behind this wait for whoever is in front of it too: so it asks for a moment only, again and again.
do $$ begin
  for attempt in 1..60 loop
    begin
      perform set_config('lock_timeout', '500ms', true);
      lock table loopless.event in share row exclusive mode;
      perform set_config('lock_timeout', '0', true);
      return;
    exception when lock_not_available then
      if attempt = 60 then
        raise exception using errcode = 'lock_not_available',
          message = 'A transaction that has published was open for a minute: the trigger could not be created.',
          hint = 'End that transaction, or wait for it, and run "loopless migrate" again.';
      end if;
      perform pg_sleep(0.5);
    end;
  end loop;
end $$;
create trigger wake_on_publish after insert on loopless.event
for each statement execute function loopless.wake_on_publish();

-- How many events wait to be claimed from the log, counted up to a limit.
create function loopless.backlog(most integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  head loopless.batch;
  open_events bigint;
  counted bigint;
begin
  select b.* into head from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  if pg_snapshot_xmax(head.to_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) then
    return most; -- another cluster's: the next claim will tell
  end if;
  select coalesce(sum(o.size), 0) into open_events from (
    select b.size from loopless.batch b where b.settled_at is null and b.lease is null order by b.leased_until limit 100
  ) o;
  select count(*) into counted
  from loopless.window_events(
    head.from_snapshot, head.to_snapshot, head.through_xid, head.through_id, '18446744073709551615', 9223372036854775807, most);
  if counted < most then
    counted := counted + (
      select count(*) from loopless.window_events(
        head.to_snapshot, pg_current_snapshot(), '0', 0, '18446744073709551615', 9223372036854775807, (most - counted)::integer));
  end if;
  return least(counted + open_events, most);
end $$;
comment on function loopless.backlog(integer) is 'Events that wait to be claimed from the log, counted up to a limit.';

-- A poller that found nothing asks to go idle. 'idle': it may end, the mark says that nobody is awake. 'awaited': a
-- publisher is in flight that may rely on it. 'found': there is something to claim. A poller whose patience has ended
-- no longer waits for publishers: what they publish is left to the next wake or the schedule.
-- Each statement here must see what committed before the lock was got, so not above READ COMMITTED.
create function loopless.go_idle(at timestamptz, is_patient boolean default true) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using errcode = 'LL012',
      message = format('Expected transaction isolation "read committed", got "%s".', current_setting('transaction_isolation')),
      hint = 'A poller that goes idle must see what committed before it got its lock.';
  end if;
  if not pg_try_advisory_xact_lock(1280262992, 4) and is_patient then
    return 'awaited';
  end if;
  if is_patient and (
    loopless.backlog(1) > 0
    or (select least(a.open_at, a.batch_at, a.due_at, a.alone_at, a.leased_at) <= at from loopless.agenda a)
  ) then
    return 'found';
  end if;
  perform setval('loopless.wake_mark', 0);
  return 'idle';
end $$;
comment on function loopless.go_idle(timestamptz, boolean) is
  'What a poller may do that found nothing: idle, awaited (a publisher is in flight) or found.';

-- Sets whom a publish invokes.
create function loopless.set_wake(at timestamptz, function_arn text, region text default null, timeout_ms integer default 1000) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into loopless.wake_target as t (function_arn, region, timeout_ms, set_at)
  values (set_wake.function_arn, set_wake.region, set_wake.timeout_ms, at)
  on conflict (only_row) do update
  set function_arn = excluded.function_arn, region = excluded.region, timeout_ms = excluded.timeout_ms, set_at = excluded.set_at;
  perform setval('loopless.wake_mark', 0);
end $$;
comment on function loopless.set_wake(timestamptz, text, text, integer) is
  'Sets the Lambda function that a publish invokes when no poller is awake.';

create function loopless.unset_wake() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from loopless.wake_target;
  return found;
end $$;
comment on function loopless.unset_wake() is 'From now on the schedule alone polls; returns whether a target had been set.';

-- As before, and wakes a poller for what is due now.
create or replace function loopless.redrive(at timestamptz, ids bigint[] default null) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  redriven integer;
begin
  with taken as (
    delete from loopless.dead_letter d where ids is null or d.id = any(ids)
    returning d.event_xid, d.event_id, d.handler
  )
  insert into loopless.delivery (event_xid, event_id, handler, reason, due_at)
  select t.event_xid, t.event_id, t.handler, 'redriven', at from taken t
  on conflict (event_id, coalesce(handler, '')) do update set due_at = excluded.due_at where delivery.lease is null;
  get diagnostics redriven = row_count;
  if redriven > 0 then
    perform loopless.wake();
  end if;
  return redriven;
end $$;

create function loopless.prune_wake_failures(cutoff timestamptz, chunk integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  removed integer;
begin
  perform pg_advisory_xact_lock(1280262992, 3);
  delete from loopless.wake_failure f
  where f.id = any(array(
    select o.id from loopless.wake_failure o where o.failed_at < cutoff order by o.failed_at limit chunk
  ));
  get diagnostics removed = row_count;
  return removed;
end $$;
comment on function loopless.prune_wake_failures(timestamptz, integer) is
  'Removes a chunk of the failed wakes before the cutoff; returns how many.';

revoke execute on all functions in schema loopless from public;
