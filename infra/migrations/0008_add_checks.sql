-- What no code of ours writes, and what by hand would be a fault: check constraints for further impossible states.
-- Rows that are there already are not looked at (not valid): the locks are held for a moment only.
-- Locks: exclusively, each table that gets a constraint, which waits for transactions that have published, claimed or
-- settled. One that stays open for long holds nobody up: the lock is asked for by tries shorter than deadlock_timeout, and
-- between two of them the others pass.

do $$
begin
  for try in 1..120 loop
    begin
      perform set_config('lock_timeout', least(100 * try, 800) || 'ms', true);
      lock table
        loopless.handler, loopless.event, loopless.batch, loopless.delivery, loopless.attempt, loopless.dead_letter,
        loopless.dedupe_key in access exclusive mode;
      perform set_config('lock_timeout', '0', true);
      return;
    exception when lock_not_available then
      perform pg_sleep(0.5);
    end;
  end loop;
  raise exception using errcode = 'lock_not_available',
    message = 'transactions that have published or settled stay open for minutes. Look for them in pg_stat_activity (by xact_start), end them, and migrate again.';
end $$;

alter table loopless.handler
  add constraint handler_name_valid check (name ~ '^[A-Za-z0-9_.-]{1,200}$') not valid,
  add constraint handler_pattern_valid check (length(pattern) <= 200 and pattern ~ '^(\*|[a-z0-9_-]+(\.[a-z0-9_-]+)*(\.\*)?)$') not valid;

alter table loopless.event
  add constraint event_headers_are_object check (json_typeof(headers) = 'object') not valid;

alter table loopless.batch
  add constraint batch_window_goes_forward check (pg_snapshot_xmax(from_snapshot) <= pg_snapshot_xmax(to_snapshot)) not valid,
  add constraint batch_slice_goes_forward check ((after_xid, after_id) <= (through_xid, through_id)) not valid; -- equal: what was left of it was removed by hand

-- An empty name would stand for every handler in the index that keeps an event's deliveries apart.
alter table loopless.delivery
  add constraint delivery_handler_named check (handler <> '') not valid,
  add constraint delivery_attempt_fits_reason check (
    case
      when reason = 'retry' then attempt > 0
      when reason in ('delayed', 'rebased', 'redriven') then attempt = 0
      else true
    end
  ) not valid,
  add constraint delivery_redriven_has_handler check (reason <> 'redriven' or handler is not null) not valid;

alter table loopless.attempt
  add constraint attempt_handler_named check (handler <> '') not valid;

alter table loopless.dead_letter
  add constraint dead_letter_handler_named check (handler <> '') not valid;

alter table loopless.dedupe_key
  add constraint dedupe_key_event_name_valid check (length(event_name) <= 200 and event_name ~ '^[a-z0-9_-]+(\.[a-z0-9_-]+)*$') not valid;
