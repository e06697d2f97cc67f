-- A claim in two statements, sent in one round trip: loopless.lease takes the claim's lock, and loopless.read_leased reads
-- what was leased, when that lock is free again. A client that is slow to read its events, or was frozen while it did, then
-- keeps no other poller waiting: Postgres commits a statement only once it has sent all of its rows.
-- Locks: none that others can wait for; functions only.
-- Errors: as before, LL011 another handler set is registered, LL012 isolation level.

create type loopless.leased as (
  batch_id bigint,
  events integer,
  deliveries integer,
  advanced boolean,
  repaired integer,
  alone boolean,
  next_due_at timestamptz
);
comment on type loopless.leased is
  'A lease: how many new events and deliveries are under it, and what else the claim found.';

-- Leases the next part of the log: the rest of an earlier batch that somebody gave back, or else a new slice.
-- No batch id when there is none. Advanced, with nothing to run: the slice holds only events that wait as deliveries,
-- or the log began anew; there may be more behind it.
-- leases_from: no batch is leased until an earlier time, this one included.
-- The positions are read once, unless their payloads come to more than max_bytes: then sums tell how many fit.
create function loopless.lease_batch(
  at timestamptz, token uuid, until timestamptz, max_events integer, max_bytes bigint,
  has_open boolean, leases_from timestamptz
) returns loopless.leased
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  leased loopless.leased;
  head loopless.batch;
  part loopless.batch;
  is_open boolean := false;
  is_next boolean := false;
  most integer := max_events;
  taken integer;
  bytes bigint;
  xids xid8[];
  ids bigint[];
  settled timestamptz;
begin
  -- A head in the future is another cluster's. Looked at before anything is taken from its window: transactions of
  -- this cluster that are open now would count as finished in it, and be passed over.
  select b.* into head from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  if pg_snapshot_xmax(head.to_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) then
    perform loopless.rebase(at);
    leased.advanced := true;
    return leased;
  end if;
  if has_open then
    select b.* into part from loopless.batch b
    where b.settled_at is null and b.lease is null and b.leased_until <= at
    order by b.leased_until limit 1 for update skip locked;
    is_open := found;
  end if;
  if not is_open then
    part := head;
    part.after_xid := part.through_xid;
    part.after_id := part.through_id;
    part.through_xid := '18446744073709551615';
    part.through_id := 9223372036854775807;
  end if;

  loop
    select count(*), count(*) - count(w.due_at), sum(case when w.due_at is null then w.bytes end), array_agg(w.xid), array_agg(w.id)
    into taken, leased.events, bytes, xids, ids
    from loopless.window_events(part.from_snapshot, part.to_snapshot, part.after_xid, part.after_id, part.through_xid, part.through_id, most) w;
    if bytes > max_bytes and leased.events > 1 then
      most := loopless.count_within(part, most, max_bytes);
      continue;
    end if;
    exit when taken > 0 or is_open or is_next;
    -- The window is used up: open the next. An event in the future is another cluster's.
    if exists (select from loopless.event e where e.xid >= pg_snapshot_xmax(pg_current_snapshot())) then
      perform loopless.rebase(at);
      leased.advanced := true;
      return leased;
    end if;
    part.from_snapshot := part.to_snapshot;
    part.to_snapshot := pg_current_snapshot();
    part.after_xid := '0';
    part.after_id := 0;
    select s.last_value into part.high_id from loopless.event_id_seq s;
    is_next := true;
  end loop;

  if taken = 0 then
    if is_open then -- somebody removed its events by hand: it must not stand before the rest of the log for ever
      update loopless.batch b set settled_at = at where b.id = part.id;
    end if;
    leased.advanced := is_open;
    return leased;
  end if;
  leased.advanced := leased.events = 0;
  settled := case when leased.advanced then at end;
  if is_open and head.leases_from > until then
    update loopless.batch b set leases_from = until where b.id = head.id;
  end if;
  if is_open and taken = part.size then
    update loopless.batch b
    set lease = token, leased_until = until, claimed_at = at, settled_at = settled
    where b.id = part.id;
    leased.batch_id := part.id;
    return leased;
  end if;
  if is_open then -- the rest stays open
    update loopless.batch b set after_xid = xids[taken], after_id = ids[taken], size = b.size - taken where b.id = part.id;
  end if;
  insert into loopless.batch as b (
    split_from, lease, leased_until, leases_from, from_snapshot, to_snapshot,
    after_xid, after_id, through_xid, through_id, high_id, size, claimed_at, settled_at)
  values (
    case when is_open then coalesce(part.split_from, part.id) end, token, until, lease_batch.leases_from, part.from_snapshot, part.to_snapshot,
    part.after_xid, part.after_id, xids[taken], ids[taken], part.high_id, taken, at, settled)
  returning b.id into leased.batch_id;
  return leased;
end $$;
comment on function loopless.lease_batch(timestamptz, uuid, timestamptz, integer, bigint, boolean, timestamptz) is
  'Leases the next part of the log.';

-- What one poll is to handle. New events come first, FIFO; deliveries get at least max_deliveries of the poll, with that
-- share of max_bytes on top, and all of it when the log is empty. The commit need not wait for the disk: a lease that a
-- crash of the server takes back was never given. Lock order: claim lock, batch, delivery.
create function loopless.lease(
  at timestamptz, token uuid, until timestamptz,
  max_events integer, max_bytes bigint, max_deliveries integer, handler_set text
) returns loopless.leased
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set join_collapse_limit = 1
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  seen record;
  leased loopless.leased;
  repaired integer := 0;
begin
  perform set_config('synchronous_commit', 'off', true); -- to the end of this transaction, which settles nothing
  perform pg_advisory_xact_lock(1280262992, 1);
  if current_setting('transaction_isolation') <> 'read committed' then
    perform loopless.check_poller(at, handler_set);
  end if;
  for turn in 1..2 loop
    select s.handler_set, s.cluster, a.open_at, a.batch_at, a.due_at, a.alone_at, a.leased_at into seen
    from loopless.bus s, loopless.agenda a;
    exit when seen.cluster = current_setting('loopless.cluster', true)
      and coalesce(seen.handler_set, lease.handler_set) is not distinct from lease.handler_set;
    perform loopless.check_poller(at, handler_set);
  end loop;

  if seen.batch_at <= at or seen.leased_at <= at then
    repaired := loopless.recover(at);
  end if;
  leased := loopless.lease_batch(
    at, token, until, max_events, max_bytes, coalesce(seen.open_at <= at, false), least(seen.batch_at, until));
  leased.deliveries := 0;
  if seen.due_at <= at then
    leased.deliveries := coalesce(cardinality(
      case when leased.events > 0
        then loopless.claim_due(at, token, until, max_deliveries, max_bytes * max_deliveries / max_events)
        else loopless.claim_due(at, token, until, greatest(max_events, max_deliveries), max_bytes)
      end), 0);
  end if;

  leased.events := coalesce(leased.events, 0);
  leased.repaired := repaired;
  leased.alone := coalesce(repaired > 0 or seen.alone_at <= at or seen.leased_at <= at, false);
  leased.next_due_at := least(seen.open_at, seen.batch_at, seen.due_at, seen.alone_at, seen.leased_at);
  if leased.next_due_at <= at then
    leased.next_due_at := loopless.next_due(token); -- this lease may have changed it
  end if;
  leased.next_due_at := nullif(leased.next_due_at, 'infinity');
  return leased;
end $$;
comment on function loopless.lease(timestamptz, uuid, timestamptz, integer, bigint, integer, text) is
  'Leases the next events and due deliveries until a time; loopless.read_leased reads them.';

-- What is under a lease, found by its token and its end; nothing when it was lost meanwhile. Takes no lock.
create function loopless.read_leased(token uuid, until timestamptz) returns setof loopless.claimed
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set join_collapse_limit = 1
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
  claimed loopless.claimed;
  part loopless.batch;
  read integer;
  xids xid8[];
  ids bigint[];
  times timestamptz[];
  one_time boolean;
  leased bigint[];
begin
  select b.* into part from loopless.batch b
  where b.settled_at is null and b.lease = token and b.leased_until = until;
  if found then
    select
      count(*), array_agg(w.xid), array_agg(w.id), array_agg(w.published_at), min(w.published_at) = max(w.published_at),
      string_agg(case when w.due_at is not null then w.id::text end, ','),
      string_agg(w.name, ','),
      json_object_agg(w.id, w.headers) filter (where w.headers is not null),
      string_agg(case when w.due_at is null then w.payload::text else 'null' end, ',')
    into
      read, xids, ids, times, one_time,
      claimed.waiting, claimed.names, claimed.headers, claimed.payloads
    from loopless.window_events(part.from_snapshot, part.to_snapshot, part.after_xid, part.after_id, part.through_xid, part.through_id, part.size) w;
    claimed.ids := array_to_string(ids, ',');
    claimed.xids := case when xids[1] = xids[read] then xids[1]::text else array_to_string(xids, ',') end;
    if one_time then
      claimed.published := loopless.epoch_ms(times[1])::text;
    else
      select string_agg(loopless.epoch_ms(t.at)::text, ',') into claimed.published from unnest(times) t (at);
    end if;
    return next claimed;
  end if;
  select array_agg(d.id order by d.event_xid, d.event_id, d.id) into leased
  from loopless.delivery d where d.lease = token and d.due_at = until;
  if leased is not null then
    return next loopless.read_deliveries(leased, false);
  end if;
end $$;
comment on function loopless.read_leased(uuid, timestamptz) is
  'What is under a lease: a row with the new events, and one with the deliveries.';

-- Both in one statement, for the pollers of earlier versions; what was leased is in the first row.
create or replace function loopless.claim(
  at timestamptz, token uuid, until timestamptz,
  max_events integer, max_bytes bigint, max_deliveries integer, handler_set text
) returns setof loopless.claimed
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  leased loopless.leased := loopless.lease(at, token, until, max_events, max_bytes, max_deliveries, handler_set);
  read loopless.claimed[] := array(select r from loopless.read_leased(token, until) r);
  claimed loopless.claimed;
begin
  if leased.events > 0 then
    claimed := read[1];
  end if;
  claimed.batch_id := leased.batch_id;
  claimed.advanced := leased.advanced;
  claimed.repaired := leased.repaired;
  claimed.alone := leased.alone;
  claimed.next_due_at := leased.next_due_at;
  return next claimed;
  if leased.deliveries > 0 then
    return next read[cardinality(read)];
  end if;
end $$;

-- Not dropped: a claim that is under way as this is applied may be about to call it.
comment on function loopless.claim_batch(timestamptz, uuid, timestamptz, integer, bigint, boolean, timestamptz) is
  'Unused; for claims that were under way when loopless.lease_batch took its place.';

insert into loopless.part_function (part, function_name)
select 'poller', name from unnest(array['lease', 'read_leased']) name;
revoke execute on function
  loopless.lease(timestamptz, uuid, timestamptz, integer, bigint, integer, text),
  loopless.lease_batch(timestamptz, uuid, timestamptz, integer, bigint, boolean, timestamptz),
  loopless.read_leased(uuid, timestamptz)
from public;
