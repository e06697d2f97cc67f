-- Claiming: the next slice of the log, and deliveries that are due, under one lease, in one round trip.
-- Windows between snapshots are the method of PgQ (https://github.com/pgq/pgq).
-- Locks: functions only. At run time a claim takes the advisory lock (1280262992, 1), 'LOOP', to its end.
-- Errors: LL011 another handler set is registered, LL012 isolation level.

-- A row holds all new events, and another all deliveries, in columns: a row an event would cost the client twice as
-- much (2026-11-24: 0.5 us an event instead of 1.2). Ids, transactions, times and names never contain a comma, and
-- payloads are put together as they are stored: what the client parses is an array of JSON.
create type loopless.claimed as (
  batch_id bigint,
  advanced boolean,
  repaired integer,
  alone boolean,
  next_due_at timestamptz,
  ids text,
  waiting text,
  xids text,
  published text,
  names text,
  headers json,
  payloads text,
  deliveries json
);
comment on type loopless.claimed is
  'A claim: what it found, with the new events, in the first row; deliveries that are due in another. Texts are separated by commas.';

-- Events of the window (a, b) after position (px, pid), through position (tx, tid), in order, n at most. First the
-- transactions that were open at a and had ended by b, each by a probe; then the range from xmax(a) on.
-- One bound at each end of a scan: beside a second one, be it wider, an index scan begins or ends where the wider one
-- says, and reads all the positions between (300,000 that are not wanted: 1,100 pages instead of 3).
-- A function without settings and with its names looked up already: the planner takes it into the query that uses it,
-- which pins the plan. A migration that adds a column to loopless.event must create it again.
create function loopless.window_events(a pg_snapshot, b pg_snapshot, px xid8, pid bigint, tx xid8, tid bigint, n integer)
returns setof loopless.event
language sql stable
begin atomic
  select w.* from (
    (
      select e.* from pg_snapshot_xip(a) x cross join lateral (
        select e.* from loopless.event e
        where e.xid = x
          and e.id > case when x = px then pid else 0 end
          and e.id <= case when x = tx then tid else 9223372036854775807 end
        order by e.xid, e.id limit n
      ) e
      where px < pg_snapshot_xmax(a) and x >= px and x <= tx and pg_visible_in_snapshot(x, b)
      order by e.xid, e.id limit n
    )
    union all
    (
      select e.* from loopless.event e
      where (e.xid, e.id) > (
          case when px < pg_snapshot_xmax(a) then pg_snapshot_xmax(a) else px end,
          case when px < pg_snapshot_xmax(a) then 0 else pid end)
        and (e.xid, e.id) <= (
          case when tx < pg_snapshot_xmax(b) then tx else pg_snapshot_xmax(b) end,
          case when tx < pg_snapshot_xmax(b) then tid else 0 end)
        and pg_visible_in_snapshot(e.xid, b)
      order by e.xid, e.id limit n
    )
  ) w
  order by w.xid, w.id limit n;
end;
comment on function loopless.window_events(pg_snapshot, pg_snapshot, xid8, bigint, xid8, bigint, integer) is
  'Events of a window between two positions, in order, n at most.';

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

-- What waits, by when it is due: looks at the top of an index.
create view loopless.agenda as
select
  (select b.leased_until from loopless.batch b where b.settled_at is null and b.lease is null order by b.leased_until limit 1) as open_at,
  (
    select b.leased_until from loopless.batch b
    where b.settled_at is null and b.lease is not null
      and b.leased_until >= (select h.leases_from from loopless.batch h where h.split_from is null order by h.id desc limit 1)
    order by b.leased_until limit 1
  ) as batch_at,
  (select d.due_at from loopless.delivery d where d.lease is null and not d.alone order by d.due_at, d.id limit 1) as due_at,
  (select d.due_at from loopless.delivery d where d.lease is null and d.alone order by d.due_at, d.id limit 1) as alone_at,
  (select d.due_at from loopless.delivery d where d.lease is not null order by d.due_at, d.id limit 1) as leased_at;
comment on view loopless.agenda is 'When the first of each kind is due, one row; null when there is none.';
comment on column loopless.agenda.open_at is 'A batch that was given back: since when it has been free.';
comment on column loopless.agenda.batch_at is 'A batch that is leased: end of its lease.';
comment on column loopless.agenda.due_at is 'A delivery that is free.';
comment on column loopless.agenda.alone_at is 'A delivery that must run alone and is free.';
comment on column loopless.agenda.leased_at is 'A delivery that is leased: end of its lease.';

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
    where b.settled_at is null and b.lease is not null and b.leased_until <= at
      and b.leased_until >= (select h.leases_from from loopless.batch h where h.split_from is null order by h.id desc limit 1)
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

-- Milliseconds since 1970, as a Date counts them: cut off, but for what the conversion itself loses.
create function loopless.epoch_ms(at timestamptz) returns bigint
language sql stable
return floor(date_part('epoch', at) * 1000 + 0.0005)::bigint;
comment on function loopless.epoch_ms(timestamptz) is 'Milliseconds since 1970.';

-- How many of the first events of a part of the log stay within max_bytes of payload; one at least.
-- The functions from here to loopless.claim run under the settings of the claim, which pin their plans.
create function loopless.count_within(part loopless.batch, max_events integer, max_bytes bigint) returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select max(s.n)::integer
  from (
    select row_number() over so_far as n, count(w.due_at) over so_far as waiting, sum(case when w.due_at is null then w.bytes end) over so_far as bytes
    from loopless.window_events(part.from_snapshot, part.to_snapshot, part.after_xid, part.after_id, part.through_xid, part.through_id, max_events) w
    window so_far as (rows unbounded preceding)
  ) s
  where s.n - s.waiting <= 1 or s.bytes <= max_bytes
$$;
comment on function loopless.count_within(loopless.batch, integer, bigint) is
  'How many events of a part of the log stay within a limit of bytes.';

-- Leases the next part of the log: the rest of an earlier batch that somebody gave back, or else a new slice.
-- No batch id when there is none. Advanced, with nothing to run: the slice holds only events that wait as deliveries,
-- or the log began anew; there may be more behind it.
-- leases_from: no batch is leased until an earlier time, this one included.
-- The log is read once, unless a payload is larger than its share of max_bytes: then sums tell how many fit.
create function loopless.claim_batch(
  at timestamptz, token uuid, until timestamptz, max_events integer, max_bytes bigint,
  has_open boolean, leases_from timestamptz
) returns loopless.claimed
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  claimed loopless.claimed;
  head loopless.batch;
  part loopless.batch;
  is_open boolean := false;
  is_next boolean := false;
  most integer := max_events;
  share bigint := max_bytes / max_events;
  taken integer;
  runnable integer;
  largest integer;
  xids xid8[];
  ids bigint[];
  times timestamptz[];
  one_time boolean;
begin
  -- A head in the future is another cluster's. Looked at before anything is taken from its window: transactions of
  -- this cluster that are open now would count as finished in it, and be passed over.
  select b.* into head from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  if pg_snapshot_xmax(head.to_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) then
    perform loopless.rebase(at);
    claimed.advanced := true;
    return claimed;
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
    select
      count(*), count(*) - count(w.due_at), max(case when w.due_at is null then w.bytes end),
      array_agg(w.xid), array_agg(w.id), array_agg(w.published_at), min(w.published_at) = max(w.published_at),
      string_agg(case when w.due_at is not null then w.id::text end, ','),
      string_agg(w.name, ','),
      json_object_agg(w.id, w.headers) filter (where w.headers is not null),
      string_agg(case when w.due_at is null and w.bytes <= share then w.payload::text else 'null' end, ',')
    into
      taken, runnable, largest, xids, ids, times, one_time,
      claimed.waiting, claimed.names, claimed.headers, claimed.payloads
    from loopless.window_events(part.from_snapshot, part.to_snapshot, part.after_xid, part.after_id, part.through_xid, part.through_id, most) w;
    if largest > share then
      most := loopless.count_within(part, most, max_bytes);
      share := largest;
      continue;
    end if;
    exit when taken > 0 or is_open or is_next;
    -- The window is used up: open the next. An event in the future is another cluster's.
    if exists (select from loopless.event e where e.xid >= pg_snapshot_xmax(pg_current_snapshot())) then
      perform loopless.rebase(at);
      claimed.advanced := true;
      return claimed;
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
    claimed.advanced := is_open;
    return claimed;
  end if;
  claimed.advanced := runnable = 0;
  claimed.ids := array_to_string(ids, ',');
  claimed.xids := case when xids[1] = xids[taken] then xids[1]::text else array_to_string(xids, ',') end;
  if one_time then
    claimed.published := loopless.epoch_ms(times[1])::text;
  else
    select string_agg(loopless.epoch_ms(t.at)::text, ',') into claimed.published from unnest(times) t (at);
  end if;
  if is_open and head.leases_from > until then
    update loopless.batch b set leases_from = until where b.id = head.id;
  end if;
  if is_open and taken = part.size then
    update loopless.batch b
    set lease = token, leased_until = until, claimed_at = at, settled_at = case when runnable = 0 then at end
    where b.id = part.id;
    claimed.batch_id := part.id;
    return claimed;
  end if;
  if is_open then -- the rest stays open
    update loopless.batch b set after_xid = xids[taken], after_id = ids[taken], size = b.size - taken where b.id = part.id;
  end if;
  insert into loopless.batch as b (
    split_from, lease, leased_until, leases_from, from_snapshot, to_snapshot,
    after_xid, after_id, through_xid, through_id, high_id, size, claimed_at, settled_at)
  values (
    case when is_open then coalesce(part.split_from, part.id) end, token, until, claim_batch.leases_from, part.from_snapshot, part.to_snapshot,
    part.after_xid, part.after_id, xids[taken], ids[taken], part.high_id, taken, at, case when runnable = 0 then at end)
  returning b.id into claimed.batch_id;
  return claimed;
end $$;
comment on function loopless.claim_batch(timestamptz, uuid, timestamptz, integer, bigint, boolean, timestamptz) is
  'Leases the next part of the log.';

-- Leases deliveries that are due, in the order of their events: at most so many, and so many bytes, but one at least.
create function loopless.claim_due(at timestamptz, token uuid, until timestamptz, max_deliveries integer, max_bytes bigint) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  leased bigint[];
begin
  with due as (
    select d.id, d.due_at, d.event_xid, d.event_id from loopless.delivery d
    where d.lease is null and not d.alone and d.due_at <= at
    order by d.due_at, d.id
    limit max_deliveries
    for update skip locked
  ), sized as (
    select due.id, e.bytes, row_number() over slice as n, coalesce(sum(e.bytes) over slice, 0) as total
    from due left join loopless.event e on e.xid = due.event_xid and e.id = due.event_id
    window slice as (order by due.due_at, due.id rows unbounded preceding)
  ), gone as ( -- somebody removed its event by hand
    delete from loopless.delivery d where d.id = any(array(select s.id from sized s where s.bytes is null))
  ), taken as (
    update loopless.delivery d set lease = token, due_at = until
    where d.id = any(array(select s.id from sized s where s.bytes is not null and (s.n = 1 or s.total <= max_bytes)))
    returning d.id, d.event_xid, d.event_id
  )
  select array_agg(t.id order by t.event_xid, t.event_id, t.id) into leased from taken t;
  return leased;
end $$;
comment on function loopless.claim_due(timestamptz, uuid, timestamptz, integer, bigint) is
  'Leases deliveries that are due; null when there is none.';

-- Deliveries with their events, in the order given. Those that have died were running alone when their poller died.
create function loopless.read_deliveries(leased bigint[], died boolean) returns loopless.claimed
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  claimed loopless.claimed;
begin
  select
    string_agg(w.event_id::text, ','),
    string_agg(w.xid::text, ','),
    string_agg(loopless.epoch_ms(w.published_at)::text, ','),
    string_agg(w.name, ','),
    json_object_agg(w.event_id, w.headers) filter (where w.headers is not null),
    string_agg(w.payload::text, ','),
    json_agg(json_build_object('id', w.id::text, 'handler', w.handler, 'attempt', w.attempt, 'alone', w.alone, 'died', died))
  into
    claimed.ids, claimed.xids, claimed.published, claimed.names, claimed.headers, claimed.payloads, claimed.deliveries
  from (
    select d.id, d.event_id, d.handler, d.attempt, d.alone, e.xid, e.published_at, e.name, e.headers, e.payload
    from unnest(leased) with ordinality l (id, n)
    join loopless.delivery d on d.id = l.id
    join loopless.event e on e.xid = d.event_xid and e.id = d.event_id
    order by l.n
  ) w;
  return claimed;
end $$;
comment on function loopless.read_deliveries(bigint[], boolean) is 'Deliveries with their events.';

-- When there will be something to do if nothing is published: the first due time or end of a lease, but for what
-- the asking poll itself has just leased.
create function loopless.next_due(own uuid default null) returns timestamptz
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select least(
    a.open_at, a.due_at, a.alone_at,
    (select d.due_at from loopless.delivery d where d.lease is not null and d.lease is distinct from own order by d.due_at, d.id limit 1),
    (
      select b.leased_until from loopless.batch b
      where b.settled_at is null and b.lease is not null and b.lease is distinct from own and b.leased_until >= a.batch_at
      order by b.leased_until limit 1
    )
  )
  from loopless.agenda a
$$;
comment on function loopless.next_due(uuid) is 'The earliest due time of a delivery or end of a lease, without those of one lease; null when nothing waits.';

-- One poll's claim. New events come first, FIFO; deliveries get at least max_deliveries of the poll, with that share of
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
set plan_cache_mode = force_generic_plan
as $$
declare
  seen record;
  claimed loopless.claimed;
  repaired integer := 0;
  leased bigint[];
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
      and coalesce(seen.handler_set, claim.handler_set) is not distinct from claim.handler_set;
    perform loopless.check_poller(at, handler_set);
  end loop;

  if seen.batch_at <= at or seen.leased_at <= at then
    repaired := loopless.recover(at);
  end if;
  claimed := loopless.claim_batch(
    at, token, until, max_events, max_bytes, coalesce(seen.open_at <= at, false), least(seen.batch_at, until));
  if seen.due_at <= at then
    if claimed.ids is null or claimed.advanced then
      leased := loopless.claim_due(at, token, until, greatest(max_events, max_deliveries), max_bytes);
    else
      leased := loopless.claim_due(at, token, until, max_deliveries, max_bytes * max_deliveries / max_events);
    end if;
  end if;

  claimed.repaired := repaired;
  claimed.alone := coalesce(repaired > 0 or seen.alone_at <= at or seen.leased_at <= at, false);
  claimed.next_due_at := least(seen.open_at, seen.batch_at, seen.due_at, seen.alone_at, seen.leased_at);
  if claimed.next_due_at <= at then
    claimed.next_due_at := loopless.next_due(token); -- this claim may have changed it
  end if;
  claimed.next_due_at := nullif(claimed.next_due_at, 'infinity');
  return next claimed;
  if leased is not null then
    return next loopless.read_deliveries(leased, false);
  end if;
end $$;
comment on function loopless.claim(timestamptz, uuid, timestamptz, integer, bigint, integer, text) is
  'Leases the next events and due deliveries until a time; returns a row with what it found and the events, and one with deliveries.';

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
set plan_cache_mode = force_generic_plan
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
  return next loopless.read_deliveries(array[one.id], one.lease is not null);
end $$;
comment on function loopless.claim_alone(timestamptz, uuid, timestamptz, text) is
  'Leases one delivery that runs alone; no row when there is none.';

revoke execute on all functions in schema loopless from public;
