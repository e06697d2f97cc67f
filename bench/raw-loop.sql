-- The least that claims slices of the log and settles them: the measure for the real thing. No leases that end, no
-- deliveries, no other cluster, no limit in bytes. The claim's commit waits for the disk, as in the prototype.
create schema raw_loop;

create table raw_loop.event (
  id bigint generated always as identity,
  xid xid8 not null default pg_current_xact_id(),
  name text not null,
  payload json not null,
  published_at timestamptz not null default now()
);
create unique index event_position_idx on raw_loop.event (xid, id);

create table raw_loop.batch (
  id bigint generated always as identity primary key,
  lease uuid,
  leased_until timestamptz not null,
  from_snapshot pg_snapshot not null,
  to_snapshot pg_snapshot not null,
  after_xid xid8 not null,
  after_id bigint not null,
  through_xid xid8 not null,
  through_id bigint not null,
  size integer not null,
  settled_at timestamptz
);
create index batch_open_idx on raw_loop.batch (leased_until) where settled_at is null;
insert into raw_loop.batch (leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, size, settled_at)
select now(), s, s, '0', 0, pg_snapshot_xmax(s), 9223372036854775807, 0, now() from pg_current_snapshot() s;

create function raw_loop.window_events(a pg_snapshot, b pg_snapshot, px xid8, pid bigint, n integer)
returns setof raw_loop.event
language plpgsql stable
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  late xid8[];
  taken integer;
begin
  if px < pg_snapshot_xmax(a) then
    select array_agg(x) into late from pg_snapshot_xip(a) x where pg_visible_in_snapshot(x, b) and x >= px;
    if late is not null then
      return query
        select e.* from raw_loop.event e
        where e.xid = any(late) and (e.xid, e.id) > (px, pid)
        order by e.xid, e.id limit n;
      get diagnostics taken = row_count;
      n := n - taken;
    end if;
    px := pg_snapshot_xmax(a);
    pid := 0;
  end if;
  if n > 0 then
    return query
      select e.* from raw_loop.event e
      where (e.xid, e.id) > (px, pid) and e.xid < pg_snapshot_xmax(b) and pg_visible_in_snapshot(e.xid, b)
      order by e.xid, e.id limit n;
  end if;
end $$;

create function raw_loop.claim(n integer, lease_for interval)
returns table (batch_id bigint, batch_lease uuid, id bigint, name text, payload json, published_at timestamptz)
language plpgsql as $$
declare
  last raw_loop.batch;
  a pg_snapshot;
  b pg_snapshot;
  px xid8;
  pid bigint;
  taken raw_loop.event[];
  size integer;
  token uuid := gen_random_uuid();
  new_id bigint;
begin
  perform pg_advisory_xact_lock(4007);
  select * into last from raw_loop.batch order by batch.id desc limit 1;
  a := last.from_snapshot;
  b := last.to_snapshot;
  px := last.through_xid;
  pid := last.through_id;
  select array_agg(w) into taken from raw_loop.window_events(a, b, px, pid, n) w;
  if taken is null then
    a := b;
    b := pg_current_snapshot();
    px := '0';
    pid := 0;
    select array_agg(w) into taken from raw_loop.window_events(a, b, px, pid, n) w;
    if taken is null then
      return;
    end if;
  end if;
  size := array_length(taken, 1);
  insert into raw_loop.batch (lease, leased_until, from_snapshot, to_snapshot, after_xid, after_id, through_xid, through_id, size)
  values (token, now() + lease_for, a, b, px, pid, taken[size].xid, taken[size].id, size)
  returning batch.id into new_id;
  return query select new_id, token, e.id, e.name, e.payload, e.published_at from unnest(taken) e;
end $$;
