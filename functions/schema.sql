-- What the example handlers write; `npm start` applies it.

create schema if not exists example;

create table if not exists example.repository_activity (
  event_id bigint primary key,
  repository text not null,
  event text not null,
  actor text,
  published_at timestamptz not null
);
comment on table example.repository_activity is 'What happened in which repository, one row an event; written by the handler record-activity.';
