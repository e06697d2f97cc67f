-- Roles: what a publisher, a poller and a viewer may do, and who is one. Roles belong to the whole cluster and take
-- a right to create that migrations do without: loopless roles create makes them, and what is here grants.
-- Locks: none that others can wait for; every object is new. At run time granting locks the rows of the catalogue that
-- it changes, against other grants only.

create table loopless.part_function (
  part text not null,
  function_name text not null,
  primary key (part, function_name),
  constraint part_function_part_known check (part in ('publisher', 'poller'))
);
comment on table loopless.part_function is 'Functions that a part may call; a migration that adds one for them adds its row. What is not here is the owner''s: registering, waking, redriving, rebasing.';
comment on column loopless.part_function.part is 'publisher, or poller; a poller may do what a publisher may, as handlers publish.';
comment on column loopless.part_function.function_name is 'Name in the schema loopless; every function of that name.';
insert into loopless.part_function (part, function_name)
select 'publisher', name from unnest(array['publish', 'publish_many', 'publish_each']) name
union all
select 'poller', name from unnest(array[
  'publish', 'publish_many', 'publish_each',
  'claim', 'claim_alone', 'next_due', 'begin_group', 'check_group', 'settle', 'release',
  'mark_awake', 'begin_waking', 'go_idle', 'backlog',
  'prune_events', 'prune_batches', 'prune_attempts', 'prune_dead_letters', 'prune_dedupe_keys', 'prune_wake_failures'
]) name;

create table loopless.role (
  role_name text not null,
  part text not null,
  granted_at timestamptz not null,
  primary key (role_name, part),
  constraint role_part_known check (part in ('publisher', 'poller', 'viewer'))
);
comment on table loopless.role is 'Who was given a part (loopless.grant_part). Each migration gives them what is new for it.';
comment on column loopless.role.role_name is 'A role of the cluster; one that does not exist, as after a restore elsewhere, is passed over.';
comment on column loopless.role.part is 'publisher: may publish, and nothing else. poller: claims, settles, prunes, publishes and reads. viewer: reads.';
comment on column loopless.role.granted_at is 'When it was first given.';

-- The rights of a part that a role lacks, as grant takes them.
create function loopless.missing_rights(role_name text, part text) returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select format('connect on database %I', current_database())
  where not has_database_privilege(role_name, current_database(), 'connect')
  union all
  select 'usage on schema loopless' where not has_schema_privilege(role_name, 'loopless', 'usage')
  union all
  select format('execute on function %s', p.oid::regprocedure)
  from pg_proc p
  join loopless.part_function f on f.function_name = p.proname
  where f.part = missing_rights.part and p.pronamespace = 'loopless'::regnamespace
    and not has_function_privilege(role_name, p.oid, 'execute')
  union all
  select format('select on %s', c.oid::regclass)
  from pg_class c
  where missing_rights.part in ('poller', 'viewer') and c.relnamespace = 'loopless'::regnamespace
    and case
      when c.relkind in ('r', 'p', 'v', 'm') then not has_table_privilege(role_name, c.oid, 'select')
      when c.relkind = 'S' then not has_sequence_privilege(role_name, c.oid, 'select')
      else false
    end;
end;
comment on function loopless.missing_rights(text, text) is 'The rights of a part that a role lacks, as grant takes them.';

-- Grants only what is missing: who may not grant may still find that there is nothing to grant.
create function loopless.grant_part(at timestamptz, role_name text, part text) returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  granted text[] := array(select loopless.missing_rights(role_name, part));
  missing text;
begin
  foreach missing in array granted loop
    execute format('grant %s to %I', missing, role_name);
  end loop;
  insert into loopless.role (role_name, part, granted_at)
  select grant_part.role_name, grant_part.part, at
  where not exists (
    select from loopless.role r where r.role_name = grant_part.role_name and r.part = grant_part.part
  );
  return granted;
end $$;
comment on function loopless.grant_part(timestamptz, text, text) is
  'Makes a role a publisher, a poller or a viewer; returns the rights that it did not have yet.';

-- Run by loopless migrate after each migration, in its transaction.
create function loopless.renew_roles(at timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  known loopless.role;
begin
  for known in select r.* from loopless.role r join pg_roles p on p.rolname = r.role_name loop
    perform loopless.grant_part(at, known.role_name, known.part);
  end loop;
end $$;
comment on function loopless.renew_roles(timestamptz) is
  'Gives every role that has a part what has been added to it.';

revoke execute on all functions in schema loopless from public;
