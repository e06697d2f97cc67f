-- Settling: what a poll did becomes true, if it still holds the lease.
-- Locks: functions only. At run time: the rows of one lease, batch before deliveries.
-- Errors: LL010 lease lost; everything in the transaction must roll back.

-- A batch in which every handler succeeded needs the first three arguments; the rest comes as outcomes:
--   split    {xid, id, size}  only the first `size` events, through that position, were started; the others are free at once
--   failed   [{deliveryId?, xid, id, handler, attempt, charged, alone, dueAt?, dead?, beganAt, endedAt, errorClass, errorMessage, errorStack}]
--            due again at dueAt, or to the dead letters for the reason dead; charged: an attempt is recorded
--   waiting  [{xid, id, handler, reason, alone}]  new deliveries, due now, uncharged
--   released [delivery id]  leased but not started: free at once, uncharged
--   done     [delivery id]  to be deleted: succeeded, dead, or replaced by a row for each handler
create function loopless.settle(at timestamptz, token uuid, batch_id bigint, outcomes json default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  batch loopless.batch;
  expected integer;
  matched integer;
begin
  if batch_id is not null then
    update loopless.batch b set settled_at = at
    where b.id = settle.batch_id and b.lease = token and b.settled_at is null
    returning b.* into batch;
    if not found then
      raise exception using errcode = 'LL010',
        message = format('The lease on batch %s was lost: it expired, and another poll took its events.', settle.batch_id);
    end if;
  end if;
  if outcomes is null then
    return;
  end if;

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

  if outcomes -> 'split' is not null then
    insert into loopless.batch (
      split_from, leased_until, from_snapshot, to_snapshot,
      after_xid, after_id, through_xid, through_id, high_id, size)
    select coalesce(batch.split_from, batch.id), at, batch.from_snapshot, batch.to_snapshot,
      s.xid, s.id, batch.through_xid, batch.through_id, batch.high_id, batch.size - s.size
    from json_to_record(outcomes -> 'split') as s (xid xid8, id bigint, size integer);
    update loopless.batch b set through_xid = s.xid, through_id = s.id, size = s.size
    from json_to_record(outcomes -> 'split') as s (xid xid8, id bigint, size integer)
    where b.id = batch.id;
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
comment on function loopless.settle(timestamptz, uuid, bigint, json) is
  'Settles what a poll holds; raises LL010 when the lease was lost.';

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
