-- Publishing: an event and the caller's transaction become a row of the log.
-- Locks: none; functions only. At run time a publish with a dedupe key waits for another transaction that
-- publishes with the same key; without one nothing waits.
-- The functions that publishers call are security definer, so that a publisher needs no right on any table.
-- Errors: LL001 name, LL002 payload too large, LL003 payload missing, LL004 another argument.

-- The event that holds a dedupe key: the one given, or the earlier one that was published with it. A key that is
-- held already costs a look, no write and no lock, so duplicates never wait for each other.
-- The settings pin the plans to the index: one made while the table was small would scan it for ever.
create function loopless.hold_key(event_name text, dedupe_key text, event_id bigint, hold_for interval) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  held loopless.dedupe_key;
begin
  loop
    -- waits here while another transaction publishes with the key, until it has committed or rolled back
    insert into loopless.dedupe_key (event_name, key, event_id, expires_at)
    values (hold_key.event_name, hold_key.dedupe_key, hold_key.event_id, now() + hold_for)
    on conflict do nothing;
    if found then
      return event_id;
    end if;
    select k.* into held from loopless.dedupe_key k
    where k.event_name = hold_key.event_name and k.key = hold_key.dedupe_key;
    if found and held.expires_at > now() then
      return held.event_id;
    end if;
    update loopless.dedupe_key k set event_id = hold_key.event_id, expires_at = now() + hold_for
    where k.event_name = hold_key.event_name and k.key = hold_key.dedupe_key and k.expires_at <= now();
    if found then
      return event_id;
    end if;
    -- somebody else took over the expired key, or retention removed it: look again
  end loop;
end $$;
comment on function loopless.hold_key(text, text, bigint, interval) is
  'Returns the event that holds a dedupe key, after giving a free key to the event given.';

-- Raises unless headers are an object of strings and small: a claim is bounded by the payloads alone.
create function loopless.check_headers(event_name text, headers json) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if json_typeof(headers) <> 'object' then
    raise exception using errcode = 'LL004',
      message = format('Expected the headers of %s to be a JSON object of strings, got %s.', event_name, json_typeof(headers));
  end if;
  if octet_length(headers::text) > 16384 then
    raise exception using errcode = 'LL004',
      message = format('Expected the headers of %s to be at most 16384 bytes, got %s.', event_name, octet_length(headers::text));
  end if;
  if exists (select from json_each(headers) h where json_typeof(h.value) <> 'string') then
    raise exception using errcode = 'LL004',
      message = format('Expected the headers of %s to be a JSON object of strings, got %s.', event_name, headers);
  end if;
end $$;
comment on function loopless.check_headers(text, json) is
  'Raises LL004 unless headers are a JSON object of strings of at most 16 KiB.';

create function loopless.publish(
  name text,
  payload json,
  due_at timestamptz default null,
  dedupe_key text default null,
  headers json default null,
  dedupe_for interval default '7 days'
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  holder_id bigint;
  new_id bigint;
  new_xid xid8;
  new_bytes integer;
  most_bytes integer := coalesce(nullif(current_setting('loopless.max_payload_bytes', true), ''), '1048576');
begin
  if name is null or length(name) > 200 or name !~ '^[a-z0-9_-]+(\.[a-z0-9_-]+)*$' then
    raise exception using errcode = 'LL001', message = format('Expected an event name of 1-200 characters, dotted lower-case words (letters, digits, _, -), got %s.', coalesce(quote_literal(left(name, 220)), 'null'));
  end if;
  if payload is null then
    raise exception using errcode = 'LL003', message = format('Expected the payload of %s to be JSON, got SQL null.', name), hint = 'For an event without data publish ''{}''.';
  end if;
  if headers is not null then
    perform loopless.check_headers(name, headers);
  end if;
  if dedupe_key is null then
    insert into loopless.event as e (name, payload, headers, due_at)
    values (publish.name, publish.payload, publish.headers, publish.due_at)
    returning e.id, e.xid, e.bytes into new_id, new_xid, new_bytes;
  else
    if length(dedupe_key) not between 1 and 512 then
      raise exception using errcode = 'LL004', message = format('Expected the dedupe key of %s to be 1-512 characters, got %s.', name, length(dedupe_key));
    end if;
    if dedupe_for is null or dedupe_for <= interval '0' then
      raise exception using errcode = 'LL004', message = format('Expected the dedupe key of %s to be kept for more than 0 seconds, got %s.', name, coalesce(dedupe_for::text, 'null'));
    end if;
    new_id := nextval('loopless.event_id_seq');
    holder_id := loopless.hold_key(name, dedupe_key, new_id, dedupe_for);
    if holder_id <> new_id then
      return holder_id;
    end if;
    insert into loopless.event as e (id, name, payload, headers, due_at) overriding system value
    values (new_id, publish.name, publish.payload, publish.headers, publish.due_at)
    returning e.xid, e.bytes into new_xid, new_bytes;
  end if;
  if new_bytes > most_bytes then
    raise exception using errcode = 'LL002', message = format('Expected the payload of %s to be at most %s bytes, got %s.', name, most_bytes, new_bytes), hint = 'Publish a reference to large data, or raise the limit where you publish: set loopless.max_payload_bytes = ...';
  end if;
  if due_at is not null then
    insert into loopless.delivery (event_xid, event_id, reason, due_at)
    values (new_xid, new_id, 'delayed', publish.due_at);
  end if;
  return new_id;
end $$;
comment on function loopless.publish(text, json, timestamptz, text, json, interval) is
  'Publishes an event in the current transaction and returns its id; with a dedupe_key seen before, the id of the first.';

-- The bulk form behind publishMany, for clients that have checked names and options. Values are separated by line
-- feeds, which JSON text written by JSON.stringify never contains: one text a column, whatever the client knows of
-- array types. Ids come back in the order of the values, separated by commas.
create function loopless.publish_many(names text, payloads text, headers text default null) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  ids text;
  largest integer;
  most_bytes integer := coalesce(nullif(current_setting('loopless.max_payload_bytes', true), ''), '1048576');
begin
  if headers is null then
    with appended as (
      insert into loopless.event as e (name, payload)
      select v.name, v.payload::json
      from unnest(string_to_array(names, E'\n'), string_to_array(payloads, E'\n')) as v (name, payload)
      returning e.id, e.bytes
    )
    select string_agg(a.id::text, ','), max(a.bytes) into ids, largest from appended a;
  else
    with appended as (
      insert into loopless.event as e (name, payload, headers)
      select v.name, v.payload::json, nullif(v.headers, '')::json
      from unnest(string_to_array(names, E'\n'), string_to_array(payloads, E'\n'), string_to_array(publish_many.headers, E'\n')) as v (name, payload, headers)
      returning e.id, e.bytes
    )
    select string_agg(a.id::text, ','), max(a.bytes) into ids, largest from appended a;
  end if;
  if largest > most_bytes then
    raise exception using errcode = 'LL002', message = format('Expected each payload to be at most %s bytes, got %s.', most_bytes, largest), hint = 'Publish a reference to large data, or raise the limit where you publish: set loopless.max_payload_bytes = ...';
  end if;
  return ids;
end $$;
comment on function loopless.publish_many(text, text, text) is
  'Publishes many events at once: names, payloads and headers separated by line feeds; returns the ids separated by commas.';

-- The bulk form for events of which some have a due time or a dedupe key. Keys are taken in one order everywhere,
-- so that two such calls can wait for each other but never deadlock. Payloads and headers stay apart from
-- the options: reading one field of a json value fails on a \u0000 in any other.
create function loopless.publish_each(payloads text, headers text, options json) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  new_ids bigint[];
  ids bigint[]; -- differs from new_ids where the key was held already: nothing is written there
  keyed record;
  largest integer;
  most_bytes integer := coalesce(nullif(current_setting('loopless.max_payload_bytes', true), ''), '1048576');
begin
  select array_agg(nextval('loopless.event_id_seq')) into new_ids from generate_series(1, json_array_length(options));
  ids := new_ids;
  for keyed in
    select o.n, o.name, o."dedupeKey" as key, coalesce(o."dedupeSeconds", 604800) * interval '1 second' as hold_for
    from rows from (json_to_recordset(options) as (name text, "dedupeKey" text, "dedupeSeconds" double precision))
      with ordinality as o (name, "dedupeKey", "dedupeSeconds", n)
    where o."dedupeKey" is not null
    order by o.name, o."dedupeKey", o.n
  loop
    ids[keyed.n] := loopless.hold_key(keyed.name, keyed.key, new_ids[keyed.n], keyed.hold_for);
  end loop;

  with appended as (
    insert into loopless.event as e (id, name, payload, headers, due_at) overriding system value
    select v.id, v.name, v.payload::json, nullif(v.headers, '')::json, v.due_at
    from rows from (
      json_to_recordset(options) as (name text, "dueAt" timestamptz),
      unnest(string_to_array(payloads, E'\n')),
      unnest(string_to_array(publish_each.headers, E'\n')),
      unnest(new_ids),
      unnest(ids)
    ) with ordinality as v (name, due_at, payload, headers, id, holder_id, n)
    where v.id = v.holder_id
    order by v.n
    returning e.id, e.xid, e.due_at, e.bytes
  ), waiting as (
    insert into loopless.delivery (event_xid, event_id, reason, due_at)
    select a.xid, a.id, 'delayed', a.due_at from appended a where a.due_at is not null
  )
  select max(a.bytes) into largest from appended a;
  if largest > most_bytes then
    raise exception using errcode = 'LL002', message = format('Expected each payload to be at most %s bytes, got %s.', most_bytes, largest), hint = 'Publish a reference to large data, or raise the limit where you publish: set loopless.max_payload_bytes = ...';
  end if;
  return array_to_string(ids, ',');
end $$;
comment on function loopless.publish_each(text, text, json) is
  'Publishes payloads and headers (separated by line feeds) with an array of options {name, dueAt?, dedupeKey?, dedupeSeconds?}; returns the ids in the order given, separated by commas.';

revoke execute on all functions in schema loopless from public;
