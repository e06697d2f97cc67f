-- Settling: what a poll did becomes true, if it still holds the lease.
-- Locks: functions only. At run time: the rows of one lease, batch before deliveries.
-- Errors: LL010 lease lost, LL013 not in the group's transaction; everything in the transaction must roll back.

-- Raises unless the caller's transaction is the one that loopless.begin_group opened under this token.
create function loopless.check_group(token uuid) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('loopless.group_token', true) is distinct from token::text then
    raise exception using errcode = 'LL013',
      message = 'The transaction that the handlers began in has ended before it was settled.',
      hint = 'A transactional handler must not commit or roll back by itself.';
  end if;
end $$;
comment on function loopless.check_group(uuid) is
  'Raises LL013 unless this is still the transaction of a group.';

-- What did not simply succeed; a function of its own, so that its settings cost the others nothing.
create function loopless.settle_outcomes(at timestamptz, token uuid, batch_id bigint, outcomes json) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  batch loopless.batch;
  expected integer;
  matched integer;
  cut_xid xid8;
  cut_id bigint;
  started integer;
begin
  -- fence first: every delivery named here must still be under this lease
  select count(*), count(d.id) into expected, matched
  from (
    select r.value::bigint as id from json_array_elements_text(outcomes -> 'released') r
    union all select r.value::bigint from json_array_elements_text(outcomes -> 'done') r
    union all select f."deliveryId" from json_to_recordset(outcomes -> 'failed') as f ("deliveryId" bigint, "dueAt" timestamptz)
      where f."deliveryId" is not null and f."dueAt" is not null
    order by 1
  ) named
  left join lateral (
    select d.id from loopless.delivery d where d.id = named.id and d.lease = token for update
  ) d on true;
  if matched <> expected then
    raise exception using errcode = 'LL010',
      message = format('The lease on %s of %s deliveries was lost: it expired, and another poll took them.', expected - matched, expected);
  end if;

  if outcomes -> 'reopen' is not null then
    update loopless.batch b set settled_at = null, lease = null, leased_until = at where b.id = settle_outcomes.batch_id;
  elsif outcomes -> 'split' is not null then
    select b.* into batch from loopless.batch b where b.id = settle_outcomes.batch_id;
    cut_xid := (outcomes -> 'split' ->> 'xid')::xid8;
    cut_id := (outcomes -> 'split' ->> 'id')::bigint;
    started := (
      select count(*) from loopless.window_events(
        batch.from_snapshot, batch.to_snapshot, batch.after_xid, batch.after_id, cut_xid, cut_id, batch.size));
    -- the row that was split keeps its end: it may be the head of the log
    insert into loopless.batch (
      split_from, leased_until, from_snapshot, to_snapshot,
      after_xid, after_id, through_xid, through_id, high_id, size)
    values (
      coalesce(batch.split_from, batch.id), at, batch.from_snapshot, batch.to_snapshot,
      cut_xid, cut_id, batch.through_xid, batch.through_id, batch.high_id, batch.size - started);
  end if;

  update loopless.delivery d set lease = null, due_at = at
  from json_array_elements_text(outcomes -> 'released') r where d.id = r.value::bigint;

  if outcomes -> 'failed' is not null then
    insert into loopless.attempt (event_id, handler, attempt, began_at, ended_at, error_class, error_message, error_stack)
    select f.id, f.handler, f.attempt, f."beganAt", f."endedAt", f."errorClass", f."errorMessage", f."errorStack"
    from json_to_recordset(outcomes -> 'failed') as f (
      id bigint, handler text, attempt integer, charged boolean, "beganAt" timestamptz, "endedAt" timestamptz,
      "errorClass" text, "errorMessage" text, "errorStack" text)
    where f.charged;

    update loopless.delivery d
    set lease = null, due_at = f."dueAt", attempt = f.attempt, alone = f.alone, reason = 'retry'
    from json_to_recordset(outcomes -> 'failed') as f ("deliveryId" bigint, "dueAt" timestamptz, attempt integer, alone boolean)
    where d.id = f."deliveryId" and f."dueAt" is not null;

    insert into loopless.delivery (event_xid, event_id, handler, reason, due_at, attempt, alone)
    select f.xid, f.id, f.handler, 'retry', f."dueAt", f.attempt, f.alone
    from json_to_recordset(outcomes -> 'failed') as f (
      "deliveryId" bigint, xid xid8, id bigint, handler text, attempt integer, "dueAt" timestamptz, alone boolean)
    where f."deliveryId" is null and f."dueAt" is not null
    on conflict do nothing; -- it waits for this handler already

    insert into loopless.dead_letter (event_xid, event_id, handler, reason, attempts, error_class, error_message, died_at)
    select f.xid, f.id, f.handler, f.dead, f.attempt, f."errorClass", f."errorMessage", at
    from json_to_recordset(outcomes -> 'failed') as f (
      xid xid8, id bigint, handler text, attempt integer, dead text, "errorClass" text, "errorMessage" text)
    where f.dead is not null
    on conflict (event_id, handler) do update
    set reason = excluded.reason, attempts = excluded.attempts, died_at = excluded.died_at,
      error_class = excluded.error_class, error_message = excluded.error_message;
  end if;

  insert into loopless.delivery (event_xid, event_id, handler, reason, due_at, alone)
  select w.xid, w.id, w.handler, w.reason, at, w.alone
  from json_to_recordset(outcomes -> 'waiting') as w (xid xid8, id bigint, handler text, reason text, alone boolean)
  on conflict do nothing;

  delete from loopless.delivery d
  using json_array_elements_text(outcomes -> 'done') r where d.id = r.value::bigint;
end $$;
comment on function loopless.settle_outcomes(timestamptz, uuid, bigint, json) is
  'Settles what did not simply succeed.';

-- A batch in which every handler succeeded needs the first three arguments; the rest comes as outcomes:
--   split    {xid, id}  only the events through that position were started; the others become a batch that is free at once
--   reopen   true  no event of the batch was started: it is free at once
--   failed   [{deliveryId?, xid, id, handler, attempt, charged, alone, dueAt?, dead?, beganAt, endedAt, errorClass, errorMessage, errorStack}]
--            due again at dueAt, or to the dead letters for the reason dead; charged: an attempt is recorded
--   waiting  [{xid, id, handler, reason, alone}]  new deliveries, due now, uncharged
--   released [delivery id]  leased but not started: free at once, uncharged
--   done     [delivery id]  to be deleted: succeeded, dead, or replaced by a row for each handler
--
-- With in_group the caller's transaction must be the one that loopless.begin_group opened under this token: the
-- effects of handlers made before a lost connection or a handler's own commit are then never settled apart from it.
create function loopless.settle(at timestamptz, token uuid, batch_id bigint, outcomes json default null, in_group boolean default false) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
  if in_group then
    perform loopless.check_group(token);
  end if;
  if batch_id is not null then
    update loopless.batch b set settled_at = at
    where b.id = settle.batch_id and b.lease = token and b.settled_at is null;
    if not found then
      raise exception using errcode = 'LL010',
        message = format('The lease on batch %s was lost: it expired, and another poll took its events.', settle.batch_id);
    end if;
  end if;
  if outcomes is not null then
    perform loopless.settle_outcomes(at, token, batch_id, outcomes);
  end if;
end $$;
comment on function loopless.settle(timestamptz, uuid, bigint, json, boolean) is
  'Settles what a poll holds; raises LL010 when the lease was lost.';

-- Marks the caller's transaction as the group of a token, and ends any statement in it that takes too long.
create function loopless.begin_group(token uuid, statement_timeout_ms integer) returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select set_config('statement_timeout', statement_timeout_ms::text, true);
  select set_config('loopless.group_token', token::text, true);
$$;
comment on function loopless.begin_group(uuid, integer) is
  'Marks the transaction in which transactional handlers run; settle checks it.';

-- Gives back, uncharged, whatever a poll still holds under its lease: for a poll that could not go on.
create function loopless.release(at timestamptz, token uuid) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  released integer;
  n integer;
begin
  update loopless.batch b set lease = null, leased_until = at
  where b.settled_at is null and b.lease = token;
  get diagnostics released = row_count;
  update loopless.delivery d set lease = null, due_at = at
  where d.lease is not null and d.lease = token;
  get diagnostics n = row_count;
  return released + n;
end $$;
comment on function loopless.release(timestamptz, uuid) is 'Frees the batch and the deliveries held under a lease; returns how many.';

-- Registers the handler set: names and patterns in two arrays of one order, and their hash. Pollers with
-- another set claim nothing from then on. The claim lock makes it wait for claims under way.
create function loopless.register(at timestamptz, handler_set text, names text[], patterns text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(1280262992, 1);
  delete from loopless.handler h where h.name <> all(names);
  insert into loopless.handler (name, pattern, registered_at)
  select n.name, n.pattern, at from unnest(names, patterns) as n (name, pattern)
  on conflict (name) do update set pattern = excluded.pattern, registered_at = excluded.registered_at;
  update loopless.bus set handler_set = register.handler_set, registered_at = at;
end $$;
comment on function loopless.register(timestamptz, text, text[], text[]) is
  'Makes a handler set the one that may claim.';

-- Takes dead letters back: each becomes a delivery due now with its attempts at 0. Null ids: all of them.
create function loopless.redrive(at timestamptz, ids bigint[] default null) returns integer
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
  return redriven;
end $$;
comment on function loopless.redrive(timestamptz, bigint[]) is
  'Turns dead letters into deliveries due now; returns how many.';

revoke execute on all functions in schema loopless from public;
