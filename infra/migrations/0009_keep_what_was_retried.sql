-- Retention of an event that failed and succeeded later than its batch was settled: it counts from the last failed attempt,
-- so that what became of it can be looked up for as long as of any other.
-- Locks: none that others can wait for; a function only.

-- Events published, and due, before the cutoff, in batches settled before it, that no handler has failed with since, that
-- wait for no handler and are in no dead letter. Such an event gets no delivery ever again: its batch is settled, and a
-- redrive needs a dead letter. So one snapshot of deliveries and dead letters decides. The attempts are an array, so that
-- only one index fits: by the other, a stale plan would look at all recent attempts for each event.
create or replace function loopless.prune_events(
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
    and not cutoff <= any(array(select a.ended_at from loopless.attempt a where a.event_id = e.id))
    and not exists (select from loopless.delivery d where d.event_id = e.id)
    and not exists (select from loopless.dead_letter d where d.event_id = e.id);
  get diagnostics removed = row_count;
end $$;
