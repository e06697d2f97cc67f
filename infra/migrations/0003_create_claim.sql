-- Claiming: the next slice of the log, and deliveries that are due, under one lease, in one round trip.
-- Windows between snapshots are the method of PgQ (https://github.com/pgq/pgq).
-- Locks: functions only. At run time a claim takes the advisory lock (1280262992, 1), 'LOOP', to its end.
-- Errors: LL011 another handler set is registered, LL012 isolation level.

create type loopless.claimed as (
  summary json,
  delivery json,
  id bigint,
  xid text,
  name text,
  payload json,
  headers json,
  published_at timestamptz
);
comment on type loopless.claimed is 'One row of a claim: first the summary, then events, each with its delivery unless it comes from the log.';

-- Events of the window (a, b) after position (px, pid), through position (tx, tid), in order.
-- First the transactions that were open at a and had ended by b, by probes; then the range from xmax(a) on.
-- The settings pin the plan to the index: one made while the log was empty would scan it for ever.
create function loopless.window_events(a pg_snapshot, b pg_snapshot, px xid8, pid bigint, tx xid8, tid bigint, n integer)
returns setof loopless.event
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  late xid8[];
  taken integer;
begin
  if px < pg_snapshot_xmax(a) then
    select array_agg(x order by x) into late from pg_snapshot_xip(a) x
    where pg_visible_in_snapshot(x, b) and x >= px and x <= tx;
    if late is not null then
      return query
        select e.* from loopless.event e
        where e.xid = any(late) and (e.xid, e.id) > (px, pid) and (e.xid, e.id) <= (tx, tid)
        order by e.xid, e.id limit n;
      get diagnostics taken = row_count;
      n := n - taken;
    end if;
    px := pg_snapshot_xmax(a);
    pid := 0;
  end if;
  if n > 0 then
    return query
      select e.* from loopless.event e
      where (e.xid, e.id) > (px, pid) and (e.xid, e.id) <= (tx, tid)
        and e.xid < pg_snapshot_xmax(b) and pg_visible_in_snapshot(e.xid, b)
      order by e.xid, e.id limit n;
  end if;
end $$;
comment on function loopless.window_events(pg_snapshot, pg_snapshot, xid8, bigint, xid8, bigint, integer) is
  'Events of a window between two positions, in order, n at most.';

-- The same for what bounds a slice, without the payloads.
create type loopless.position as (xid xid8, id bigint, bytes integer);
comment on type loopless.position is 'Where an event stands, and its size; bytes is null for one that waits as a delivery.';
create function loopless.window_positions(a pg_snapshot, b pg_snapshot, px xid8, pid bigint, tx xid8, tid bigint, n integer)
returns setof loopless.position
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  late xid8[];
  taken integer;
begin
  if px < pg_snapshot_xmax(a) then
    select array_agg(x order by x) into late from pg_snapshot_xip(a) x
    where pg_visible_in_snapshot(x, b) and x >= px and x <= tx;
    if late is not null then
      return query
        select e.xid, e.id, case when e.due_at is null then e.bytes end from loopless.event e
        where e.xid = any(late) and (e.xid, e.id) > (px, pid) and (e.xid, e.id) <= (tx, tid)
        order by e.xid, e.id limit n;
      get diagnostics taken = row_count;
      n := n - taken;
    end if;
    px := pg_snapshot_xmax(a);
    pid := 0;
  end if;
  if n > 0 then
    return query
      select e.xid, e.id, case when e.due_at is null then e.bytes end from loopless.event e
      where (e.xid, e.id) > (px, pid) and (e.xid, e.id) <= (tx, tid)
        and e.xid < pg_snapshot_xmax(b) and pg_visible_in_snapshot(e.xid, b)
      order by e.xid, e.id limit n;
  end if;
end $$;
comment on function loopless.window_positions(pg_snapshot, pg_snapshot, xid8, bigint, xid8, bigint, integer) is
  'Positions and sizes of the events of a window between two positions, in order, n at most.';

-- A database that was restored or copied into another cluster: transaction ids and snapshots of the old one
-- mean nothing here. Every event that is not provably claimed becomes a delivery due now, positions that lie in
-- this cluster's future are set to 0 so that no later window meets them, and a new baseline is recorded, all by
-- one snapshot. Events may be handled twice; none is lost. Runs under the claim's lock.
create function loopless.rebase(at timestamptz) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  last loopless.batch;
  moved bigint;
begin
  perform pg_advisory_xact_lock(1280262992, 1);
  select b.* into last from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  with here as materialized (
    select pg_current_snapshot() as snapshot
  ), unclaimed as (
    select e.id, e.xid from loopless.event e
    where e.due_at is null
      and not (
        e.id <= last.high_id
        and (
          pg_visible_in_snapshot(e.xid, last.from_snapshot)
          or pg_visible_in_snapshot(e.xid, last.to_snapshot) and (e.xid, e.id) <= (last.through_xid, last.through_id)
        )
      )
  ), unsettled as (
    select w.id, w.xid
    from loopless.batch b, loopless.window_events(b.from_snapshot, b.to_snapshot, b.after_xid, b.after_id, b.through_xid, b.through_id, b.size) w
    where b.settled_at is null and w.due_at is null
  ), waiting as (
    insert into loopless.delivery (event_xid, event_id, reason, due_at)
    select case when pg_visible_in_snapshot(u.xid, here.snapshot) then u.xid else '0' end, u.id, 'rebased', at
    from (select id, xid from unclaimed union select id, xid from unsettled) u, here
    order by u.id
    on conflict do nothing
    returning 1
  ), settled as (
    update loopless.batch b set settled_at = at, lease = null where b.settled_at is null
  ), moved_deliveries as (
    update loopless.delivery d set event_xid = '0' from here where not pg_visible_in_snapshot(d.event_xid, here.snapshot)
  ), moved_dead as (
    update loopless.dead_letter d set event_xid = '0' from here where not pg_visible_in_snapshot(d.event_xid, here.snapshot)
  ), moved_events as (
    update loopless.event e set xid = '0' from here where not pg_visible_in_snapshot(e.xid, here.snapshot)
  ), baseline as (
    insert into loopless.batch (leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, high_id, size, settled_at)
    select at, here.snapshot, here.snapshot, '0', 0, '0', 0, s.last_value, 0, at from here, loopless.event_id_seq s
  )
  select count(*) into moved from waiting;
  update loopless.bus set cluster = (select system_identifier::text from pg_control_system());
  return moved;
end $$;
comment on function loopless.rebase(timestamptz) is
  'Starts the log anew in this cluster: what is not provably claimed becomes a delivery due now. Done by the first claim after a restore; call it by hand after a switch-over. Returns the number of deliveries made.';

-- Turns batches whose poller died into deliveries that run alone, one a time. Returns the number of events.
create function loopless.recover(at timestamptz) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  dead loopless.batch;
  recovered integer := 0;
  made integer;
begin
  for dead in
    select b.* from loopless.batch b
    where b.settled_at is null and b.leased_until <= at and b.lease is not null
    order by b.leased_until limit 4 for update skip locked
  loop
    insert into loopless.delivery (event_xid, event_id, reason, due_at, alone)
    select w.xid, w.id, 'recovered', at, true
    from loopless.window_events(dead.from_snapshot, dead.to_snapshot, dead.after_xid, dead.after_id, dead.through_xid, dead.through_id, dead.size) w
    where w.due_at is null
    on conflict do nothing; -- it waits already
    get diagnostics made = row_count;
    recovered := recovered + made;
    -- without its lease: its poller, should it come back, must not take this for its own settlement
    update loopless.batch b set settled_at = at, lease = null where b.id = dead.id;
  end loop;
  -- deliveries that were leased together: none of them is charged, each runs alone from now on
  with expired as (
    select d.id from loopless.delivery d
    where d.lease is not null and d.due_at <= at and not d.alone
    order by d.due_at, d.id limit 500 for update skip locked
  )
  update loopless.delivery d set alone = true, lease = null, reason = 'recovered', due_at = at
  from expired where d.id = expired.id;
  get diagnostics made = row_count;
  return recovered + made;
end $$;
comment on function loopless.recover(timestamptz) is 'Frees what dead pollers held, to be run alone; returns the number of events.';


-- What every claim does before it takes anything.
create function loopless.check_poller(at timestamptz, handler_set text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  bus loopless.bus;
  here text := current_setting('loopless.cluster', true);
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using errcode = 'LL012',
      message = format('Expected transaction isolation "read committed", got "%s".', current_setting('transaction_isolation')),
      hint = 'A claim must see what committed before it got its lock; an older snapshot would skip events.';
  end if;
  select b.* into bus from loopless.bus b;
  if bus.handler_set is not null and bus.handler_set is distinct from check_poller.handler_set then
    raise exception using errcode = 'LL011',
      message = 'The handlers of this poller are not the registered ones; nothing was claimed.',
      hint = 'Run "loopless register" with the handlers that are deployed now, or stop this poller if it is an old one.';
  end if;
  if here is null or here = '' then -- once a session: a connection never changes its cluster
    select c.system_identifier::text into here from pg_control_system() c;
    perform set_config('loopless.cluster', here, false);
  end if;
  if bus.cluster is null then
    update loopless.bus b set cluster = here;
  elsif bus.cluster <> here then
    perform loopless.rebase(at);
  end if;
end $$;
comment on function loopless.check_poller(timestamptz, text) is
  'Refuses an isolation level that would lose events and a poller whose handlers are not the registered ones; notices another cluster.';

-- The next part of the log under a lease: the rest of an earlier batch that somebody gave back, or else a new
-- slice. Null when there is none; a batch that is settled already holds only events that wait as deliveries.
create function loopless.claim_batch(at timestamptz, token uuid, until timestamptz, max_events integer, max_bytes bigint)
returns loopless.batch
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  head loopless.batch;
  part loopless.batch;
  is_open boolean;
  end_xid xid8;
  end_id bigint;
  taken integer;
  runnable integer;
begin
  -- A head in the future is another cluster's. Looked at before anything is taken from its window: transactions of
  -- this cluster that are open now would count as finished in it, and be passed over.
  select b.* into head from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  if pg_snapshot_xmax(head.to_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) then
    perform loopless.rebase(at);
    return null;
  end if;
  select b.* into part from loopless.batch b
  where b.settled_at is null and b.lease is null and b.leased_until <= at
  order by b.leased_until limit 1 for update skip locked;
  is_open := found;
  if not is_open then
    part := head;
    part.after_xid := part.through_xid;
    part.after_id := part.through_id;
    part.through_xid := '18446744073709551615';
    part.through_id := 9223372036854775807;
  end if;

  for turn in 1..2 loop
    select s.xid, s.id, s.n, s.runnable into end_xid, end_id, taken, runnable
    from (
      select p.xid, p.id, row_number() over slice as n, count(p.bytes) over slice as runnable, sum(p.bytes) over slice as total
      from loopless.window_positions(part.from_snapshot, part.to_snapshot, part.after_xid, part.after_id, part.through_xid, part.through_id, max_events) p
      window slice as (rows unbounded preceding)
    ) s
    where s.runnable <= 1 or s.total <= max_bytes
    order by s.n desc limit 1;
    exit when found or is_open or turn = 2;
    -- The window is used up: open the next. An event in the future is another cluster's.
    if exists (select from loopless.event e where e.xid >= pg_snapshot_xmax(pg_current_snapshot())) then
      perform loopless.rebase(at);
      return null;
    end if;
    part.from_snapshot := part.to_snapshot;
    part.to_snapshot := pg_current_snapshot();
    part.after_xid := '0';
    part.after_id := 0;
    select s.last_value into part.high_id from loopless.event_id_seq s;
  end loop;

  if taken is null then
    if not is_open then
      return null;
    end if;
    -- somebody removed its events by hand: it must not stand before the rest of the log for ever
    update loopless.batch b set settled_at = at where b.id = part.id returning b.* into part;
    return part;
  end if;
  if is_open and taken = part.size then
    update loopless.batch b set lease = token, leased_until = until, claimed_at = at
    where b.id = part.id returning b.* into part;
    return part;
  end if;
  if is_open then -- the rest stays open
    update loopless.batch b set after_xid = end_xid, after_id = end_id, size = b.size - taken where b.id = part.id;
  end if;
  insert into loopless.batch as b (
    split_from, lease, leased_until, from_snapshot, to_snapshot,
    after_xid, after_id, through_xid, through_id, high_id, size, claimed_at, settled_at)
  values (
    case when is_open then coalesce(part.split_from, part.id) end, token, until, part.from_snapshot, part.to_snapshot,
    part.after_xid, part.after_id, end_xid, end_id, part.high_id, taken, at, case when runnable = 0 then at end)
  returning b.* into part;
  return part;
end $$;
comment on function loopless.claim_batch(timestamptz, uuid, timestamptz, integer, bigint) is
  'Leases the next part of the log; null when there is none.';

-- When there will be something to do if nothing is published: the first due time or end of a lease, but for what
-- the asking poll itself has just leased.
create function loopless.next_due(own uuid default null) returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select least(
    (select d.due_at from loopless.delivery d where d.lease is null and not d.alone order by d.due_at, d.id limit 1),
    (select d.due_at from loopless.delivery d where d.lease is null and d.alone order by d.due_at, d.id limit 1),
    (select d.due_at from loopless.delivery d where d.lease is not null and d.lease is distinct from own order by d.due_at, d.id limit 1),
    (select b.leased_until from loopless.batch b where b.settled_at is null and b.lease is distinct from own order by b.leased_until limit 1)
  )
$$;
comment on function loopless.next_due(uuid) is 'The earliest due time of a delivery or end of a lease, without those of one lease; null when nothing waits.';

-- One poll's claim. The first row is the summary; then events, FIFO, each with its delivery unless it comes
-- from the log. New events come first; deliveries get at least max_deliveries of the poll, with that share of
-- max_bytes on top, and all of it when the log is empty. The commit need not wait for the disk: a claim that a
-- crash of the server takes back was never made. Lock order: claim lock, batch, delivery.
create function loopless.claim(
  at timestamptz, token uuid, until timestamptz,
  max_events integer, max_bytes bigint, max_deliveries integer, handler_set text
) returns setof loopless.claimed
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set join_collapse_limit = 1
set jit = off
as $$
declare
  batch loopless.batch;
  has_new boolean;
  repaired integer;
  leased bigint[];
begin
  perform set_config('synchronous_commit', 'off', true); -- to the end of this transaction, which settles nothing
  perform pg_advisory_xact_lock(1280262992, 1);
  perform loopless.check_poller(at, handler_set);
  repaired := loopless.recover(at);
  batch := loopless.claim_batch(at, token, until, max_events, max_bytes);
  has_new := batch.id is not null and batch.settled_at is null;

  with due as (
    select d.id, d.due_at, d.event_xid, d.event_id from loopless.delivery d
    where d.lease is null and not d.alone and d.due_at <= at
    order by d.due_at, d.id
    limit case when has_new then max_deliveries else greatest(max_events, max_deliveries) end
    for update skip locked
  ), sized as (
    select due.id, e.bytes, row_number() over slice as n, coalesce(sum(e.bytes) over slice, 0) as total
    from due left join loopless.event e on e.xid = due.event_xid and e.id = due.event_id
    window slice as (order by due.due_at, due.id rows unbounded preceding)
  ), gone as ( -- somebody removed its event by hand
    delete from loopless.delivery d where d.id = any(array(select s.id from sized s where s.bytes is null))
  ), taken as (
    update loopless.delivery d set lease = token, due_at = until
    where d.id = any(array(
      select s.id from sized s
      where s.bytes is not null and (s.n = 1
        or s.total <= case when has_new then max_bytes * max_deliveries / max_events else max_bytes end)))
    returning d.id, d.event_xid, d.event_id
  )
  select array_agg(t.id order by t.event_xid, t.event_id, t.id) into leased from taken t;

  return query select
    json_build_object(
      'batchId', batch.id::text,
      'batchSettled', batch.settled_at is not null,
      'repaired', repaired,
      'alone', exists (select from loopless.delivery d where d.lease is null and d.alone and d.due_at <= at)
        or exists (select from loopless.delivery d where d.lease is not null and d.due_at <= at),
      'nextDueAt', loopless.next_due(token)
    ), null::json, null::bigint, null::text, null::text, null::json, null::json, null::timestamptz;
  if has_new then
    return query
      select null::json, null::json, w.id, w.xid::text, w.name, w.payload, w.headers, w.published_at
      from loopless.window_events(batch.from_snapshot, batch.to_snapshot, batch.after_xid, batch.after_id, batch.through_xid, batch.through_id, batch.size) w
      where w.due_at is null;
  end if;
  if leased is not null then
    return query
      select null::json,
        json_build_object('id', d.id::text, 'handler', d.handler, 'attempt', d.attempt, 'alone', false, 'died', false),
        e.id, e.xid::text, e.name, e.payload, e.headers, e.published_at
      from unnest(leased) with ordinality l (id, n)
      join loopless.delivery d on d.id = l.id
      join loopless.event e on e.xid = d.event_xid and e.id = d.event_id
      order by l.n;
  end if;
end $$;
comment on function loopless.claim(timestamptz, uuid, timestamptz, integer, bigint, integer, text) is
  'Leases the next events and due deliveries until a time; returns a summary row and a row an event.';

-- One delivery that must run with nothing beside it. One whose lease ran out was running alone when its poller
-- died: it comes back as died, to be charged without being run.
create function loopless.claim_alone(at timestamptz, token uuid, until timestamptz, handler_set text)
returns setof loopless.claimed
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  one loopless.delivery;
begin
  perform set_config('synchronous_commit', 'off', true);
  perform loopless.check_poller(at, handler_set);
  loop
    select d.* into one from loopless.delivery d
    where d.lease is not null and d.due_at <= at and d.alone
    order by d.due_at, d.id limit 1 for update skip locked;
    if not found then
      select d.* into one from loopless.delivery d
      where d.lease is null and d.alone and d.due_at <= at
      order by d.due_at, d.id limit 1 for update skip locked;
      if not found then
        return;
      end if;
    end if;
    exit when exists (select from loopless.event e where e.xid = one.event_xid and e.id = one.event_id);
    delete from loopless.delivery d where d.id = one.id; -- somebody removed its event by hand
  end loop;
  update loopless.delivery d set lease = token, due_at = until where d.id = one.id;
  return query
    select null::json,
      json_build_object('id', one.id::text, 'handler', one.handler, 'attempt', one.attempt, 'alone', true, 'died', one.lease is not null),
      e.id, e.xid::text, e.name, e.payload, e.headers, e.published_at
    from loopless.event e where e.xid = one.event_xid and e.id = one.event_id;
end $$;
comment on function loopless.claim_alone(timestamptz, uuid, timestamptz, text) is
  'Leases one delivery that runs alone; no row when there is none.';

revoke execute on all functions in schema loopless from public;
