-- Retention: what nothing needs any more leaves from the old end of each table, a chunk at a time.
-- Locks: creating the indexes blocks writers of loopless.batch. At run time each chunk takes the advisory lock
-- (1280262992, 3), so that two prunes take turns, and the rows that it deletes, which nobody else wants.
-- A chunk answers with the last row it looked at, removed or kept; the next one goes on from there.
-- Each delete goes by a range of an index, not by a join with the rows to delete: a join planned while the tables
-- were small may walk them the wrong way round.

-- The baselines: where the log began in this cluster (the installation, a rebase).
create index batch_baseline_idx on loopless.batch (id) where split_from is null and claimed_at is null;
create index batch_split_idx on loopless.batch (split_from, after_xid, after_id) where split_from is not null;

create type loopless.horizon as (a pg_snapshot, b pg_snapshot, xid xid8, id bigint);
comment on type loopless.horizon is
  'Settled: visible in snapshot a, or visible in b and at most at position (xid, id).';

-- Where the batches end that were all settled before the cutoff. The windows follow each other, and so do the
-- slices of a window: everything before the first batch that is not settled that long lies in batches that are.
-- A part that was split off stands at the place of its origin. The snapshots of another cluster prove nothing
-- here, so only batches since the newest baseline count; at the baseline each event that was not provably
-- claimed got a delivery. Null: nothing is provably settled (no claim yet, or none since a restore), or not that
-- long (a younger baseline).
create function loopless.settled_horizon(cutoff timestamptz) returns loopless.horizon
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  here pg_snapshot := pg_current_snapshot();
  baseline bigint;
  head loopless.batch;
  slice loopless.batch;
  part loopless.batch;
begin
  if not exists (
    select from loopless.bus b
    where b.cluster = (select c.system_identifier::text from pg_control_system() c)
  ) then
    return null;
  end if;
  select b.* into head from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  if pg_snapshot_xmax(head.to_snapshot) > pg_snapshot_xmax(here)
    or exists (select from loopless.event e where e.xid >= pg_snapshot_xmax(here)) then
    return null; -- the next claim rebases
  end if;
  select b.id into baseline from loopless.batch b
  where b.split_from is null and b.claimed_at is null order by b.id desc limit 1;

  select b.* into slice from loopless.batch b
  where b.split_from is null and b.id >= baseline and (b.settled_at < cutoff) is not true
  order by b.id limit 1;
  select b.* into part from loopless.batch b
  where b.split_from >= baseline and (b.settled_at < cutoff) is not true
  order by b.split_from, b.after_xid, b.after_id limit 1;
  if slice.id is null and part.id is null then
    return row(head.from_snapshot, head.to_snapshot, head.through_xid, head.through_id)::loopless.horizon;
  end if;
  if slice.id = baseline then
    return null; -- it stands for all that was settled before it
  end if;
  if slice.id is null or part.id is not null
    and (part.split_from, part.after_xid, part.after_id) < (slice.id, slice.after_xid, slice.after_id) then
    slice := part;
  end if;
  return row(slice.from_snapshot, slice.to_snapshot, slice.after_xid, slice.after_id)::loopless.horizon;
end $$;
comment on function loopless.settled_horizon(timestamptz) is
  'How far the log is provably settled, by batches settled before the cutoff; null: not at all.';

-- Events published, and due, before the cutoff, in batches settled before it, that wait for no handler and are
-- in no dead letter. Such an event gets no delivery ever again: its batch is settled, and a redrive needs a dead
-- letter. So one snapshot of deliveries and dead letters decides.
create function loopless.prune_events(
  cutoff timestamptz, after_xid xid8, after_id bigint, chunk integer,
  out removed integer, out last_xid xid8, out last_id bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  settled loopless.horizon;
  end_xid xid8;
  end_id bigint := 0;
begin
  perform pg_advisory_xact_lock(1280262992, 3);
  removed := 0;
  settled := loopless.settled_horizon(cutoff);
  if settled.a is null then
    return;
  end if;
  end_xid := pg_snapshot_xmax(settled.a);
  if (settled.xid, settled.id) > (end_xid, end_id) then
    end_xid := settled.xid;
    end_id := settled.id;
  end if;

  select e.xid, e.id into last_xid, last_id from loopless.event e
  where (e.xid, e.id) > (prune_events.after_xid, prune_events.after_id) and (e.xid, e.id) <= (end_xid, end_id)
  order by e.xid, e.id offset chunk - 1 limit 1;
  delete from loopless.event e
  where (e.xid, e.id) > (prune_events.after_xid, prune_events.after_id)
    and (e.xid, e.id) <= (coalesce(last_xid, end_xid), coalesce(last_id, end_id))
    and e.published_at < cutoff and (e.due_at is null or e.due_at < cutoff)
    and (
      pg_visible_in_snapshot(e.xid, settled.a)
      or pg_visible_in_snapshot(e.xid, settled.b) and (e.xid, e.id) <= (settled.xid, settled.id)
    )
    and not exists (select from loopless.delivery d where d.event_id = e.id)
    and not exists (select from loopless.dead_letter d where d.event_id = e.id);
  get diagnostics removed = row_count;
end $$;
comment on function loopless.prune_events(timestamptz, xid8, bigint, integer) is
  'Removes settled events among the next chunk of the log; last_xid is null at the end of what is settled.';

-- Batches settled before the cutoff; never the head of the log, where the next claim begins, nor the newest
-- baseline. Ids follow the claims, so the walk ends at the first chunk with a batch settled later.
create function loopless.prune_batches(
  cutoff timestamptz, after_id bigint, chunk integer,
  out removed integer, out last_id bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  head bigint;
  baseline bigint;
  end_id bigint;
  is_young boolean;
  is_end boolean;
begin
  perform pg_advisory_xact_lock(1280262992, 3);
  select b.id into head from loopless.batch b where b.split_from is null order by b.id desc limit 1;
  select b.id into baseline from loopless.batch b
  where b.split_from is null and b.claimed_at is null order by b.id desc limit 1;
  select max(l.id), coalesce(bool_or(l.settled_at >= cutoff), false), count(*) < chunk into end_id, is_young, is_end
  from (
    select b.id, b.settled_at from loopless.batch b where b.id > prune_batches.after_id order by b.id limit chunk
  ) l;
  delete from loopless.batch b
  where b.id > prune_batches.after_id and b.id <= end_id
    and b.settled_at < cutoff and b.id not in (head, baseline);
  get diagnostics removed = row_count;
  last_id := case when not is_young and not is_end then end_id end;
end $$;
comment on function loopless.prune_batches(timestamptz, bigint, integer) is
  'Removes settled batches among the next chunk; last_id is null at the end, or when later ones are younger.';

-- Attempts that ended before the cutoff, unless their event still waits for a handler or is a dead letter.
create function loopless.prune_attempts(
  cutoff timestamptz, after_ended_at timestamptz, after_id bigint, chunk integer,
  out removed integer, out last_ended_at timestamptz, out last_id bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
  perform pg_advisory_xact_lock(1280262992, 3);
  select a.ended_at, a.id into last_ended_at, last_id from loopless.attempt a
  where a.ended_at < cutoff
    and (a.ended_at, a.id) > (prune_attempts.after_ended_at, prune_attempts.after_id)
  order by a.ended_at, a.id offset chunk - 1 limit 1;
  delete from loopless.attempt a
  where a.ended_at < cutoff
    and (a.ended_at, a.id) > (prune_attempts.after_ended_at, prune_attempts.after_id)
    and (a.ended_at, a.id) <= (coalesce(last_ended_at, cutoff), coalesce(last_id, 0))
    and not exists (select from loopless.delivery d where d.event_id = a.event_id)
    and not exists (select from loopless.dead_letter d where d.event_id = a.event_id);
  get diagnostics removed = row_count;
end $$;
comment on function loopless.prune_attempts(timestamptz, timestamptz, bigint, integer) is
  'Removes attempts among the next chunk of old ones; last_ended_at is null at their end.';

-- What is locked is being redriven just now.
create function loopless.prune_dead_letters(cutoff timestamptz, chunk integer) returns integer
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
  delete from loopless.dead_letter d
  where d.id = any(array(
    select o.id from loopless.dead_letter o
    where o.died_at < cutoff order by o.died_at limit chunk for update skip locked
  ));
  get diagnostics removed = row_count;
  return removed;
end $$;
comment on function loopless.prune_dead_letters(timestamptz, integer) is
  'Removes a chunk of the dead letters that died before the cutoff; returns how many.';

-- What is locked is being published again just now.
create function loopless.prune_dedupe_keys(at timestamptz, chunk integer) returns integer
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
  delete from loopless.dedupe_key k
  where k.ctid = any(array(
    select o.ctid from loopless.dedupe_key o
    where o.expires_at <= at order by o.expires_at limit chunk for update skip locked
  ));
  get diagnostics removed = row_count;
  return removed;
end $$;
comment on function loopless.prune_dedupe_keys(timestamptz, integer) is
  'Removes a chunk of the expired dedupe keys; returns how many.';

revoke execute on all functions in schema loopless from public;
