-- Publishing: an event and the caller's transaction become a row of the log.
-- Locks: none; functions only. All are security definer, so that a publisher needs no right on any table.
-- Errors: LL001 name, LL002 payload too large, LL003 payload or headers missing or not an object.

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
  first_id bigint;
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
  if headers is not null and json_typeof(headers) <> 'object' then
    raise exception using errcode = 'LL003', message = format('Expected the headers of %s to be a JSON object, got %s.', name, json_typeof(headers));
  end if;
  if dedupe_key is not null then
    new_id := nextval('loopless.event_id_seq');
    -- A second publisher with the same key waits here until the first has committed or rolled back.
    insert into loopless.dedupe_key as k (event_name, key, event_id, expires_at)
    values (publish.name, publish.dedupe_key, new_id, now() + publish.dedupe_for)
    on conflict (event_name, key) do update
    set event_id = excluded.event_id, expires_at = excluded.expires_at
    where k.expires_at <= now();
    if not found then
      select k.event_id into first_id from loopless.dedupe_key k
      where k.event_name = publish.name and k.key = publish.dedupe_key;
      return first_id;
    end if;
    insert into loopless.event as e (id, name, payload, headers, due_at) overriding system value
    values (new_id, publish.name, publish.payload, publish.headers, publish.due_at)
    returning e.xid, e.bytes into new_xid, new_bytes;
  else
    insert into loopless.event as e (name, payload, headers, due_at)
    values (publish.name, publish.payload, publish.headers, publish.due_at)
    returning e.id, e.xid, e.bytes into new_id, new_xid, new_bytes;
  end if;
  if new_bytes > most_bytes then
    raise exception using errcode = 'LL002', message = format('Expected the payload of %s to be at most %s bytes, got %s.', name, most_bytes, new_bytes), hint = 'Publish a reference to large data, or raise the limit: alter database ... set loopless.max_payload_bytes = ...';
  end if;
  if due_at is not null then
    insert into loopless.delivery (event_xid, event_id, reason, due_at)
    values (new_xid, new_id, 'delayed', publish.due_at);
  end if;
  return new_id;
end $$;
comment on function loopless.publish(text, json, timestamptz, text, json, interval) is
  'Publishes an event in the current transaction and returns its id; with a dedupe_key seen before, the id of the first.';

-- The bulk form behind publishMany. Values are separated by line feeds, which JSON text written by
-- JSON.stringify never contains: one text a column, whatever the client knows of array types.
-- Ids come back in the order of the values, separated by commas.
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
    raise exception using errcode = 'LL002', message = format('Expected each payload to be at most %s bytes, got %s.', most_bytes, largest), hint = 'Publish a reference to large data, or raise the limit: alter database ... set loopless.max_payload_bytes = ...';
  end if;
  return ids;
end $$;
comment on function loopless.publish_many(text, text, text) is
  'Publishes many events at once: names, payloads and headers separated by line feeds; returns the ids separated by commas.';

-- Many events of which some have a due time or a dedupe key. Keys are taken in one order everywhere,
-- so that two such calls can wait for each other but never deadlock. Payloads and headers stay apart from
-- the options: reading one field of a json value fails on a \u0000 in any other.
create function loopless.publish_each(payloads text, headers text, options json) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  payload_of text[] := string_to_array(payloads, E'\n');
  headers_of text[] := string_to_array(publish_each.headers, E'\n');
  ids bigint[] := array_fill(null::bigint, array[cardinality(payload_of)]);
  one record;
begin
  for one in
    select o.value, o.ordinality from json_array_elements(options) with ordinality o
    order by o.value ->> 'name', o.value ->> 'dedupeKey', o.ordinality
  loop
    ids[one.ordinality] := loopless.publish(
      name => one.value ->> 'name',
      payload => payload_of[one.ordinality]::json,
      due_at => (one.value ->> 'dueAt')::timestamptz,
      dedupe_key => one.value ->> 'dedupeKey',
      headers => nullif(headers_of[one.ordinality], '')::json,
      dedupe_for => coalesce((one.value ->> 'dedupeSeconds')::double precision, 604800) * interval '1 second'
    );
  end loop;
  return array_to_string(ids, ',');
end $$;
comment on function loopless.publish_each(text, text, json) is
  'Publishes payloads and headers (separated by line feeds) with an array of options {name, dueAt?, dedupeKey?, dedupeSeconds?}; returns the ids in the order given, separated by commas.';

revoke execute on all functions in schema loopless from public;
