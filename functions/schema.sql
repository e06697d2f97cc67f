-- What the example handlers write. `npm start` and each deployment (functions/migrate.ts) apply it, again and again.

create schema if not exists example;

create table if not exists example.repository_activity (
  event_id bigint primary key,
  repository text not null,
  event text not null,
  actor text,
  published_at timestamptz not null
);
comment on table example.repository_activity is 'What happened in which repository, one row an event; written by the handler record-activity.';

-- Whoever polls runs the handlers (loopless roles create).
do $$
declare
  poller text;
begin
  for poller in select r.role_name from loopless.role r join pg_roles p on p.rolname = r.role_name where r.part = 'poller' loop
    execute format('grant usage on schema example to %I', poller);
    execute format('grant insert on all tables in schema example to %I', poller);
  end loop;
end $$;
