-- Stand-in for the extensions aws_commons and aws_lambda of RDS, for a Postgres without them: the same functions, on
-- pg_notify. A receiver (infra/local/bridge.ts) makes real invocations of the notifications; without one, nothing
-- happens. Never part of a migration; whoever may create schemas in the database may run it, any number of times.
--
--   psql "$DATABASE_URL" -f infra/local/aws_lambda.sql
--
-- A notification is sent by the commit, where RDS invokes before it: a transaction that rolls back invokes nobody, one
-- that invokes cannot be prepared (PREPARE TRANSACTION), and there is no answer to wait for. For a function that
-- invokes as RDS does, run aws_lambda_at_once.sql after this.
begin;
set local client_min_messages = warning;

do $$ begin
  if exists (select from pg_extension e where e.extname in ('aws_commons', 'aws_lambda')) then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = 'This database has the extension aws_lambda itself: the stand-in must not replace it.',
      hint = 'Nothing was changed, and nothing needs to be.';
  end if;
  if exists (select from pg_available_extensions a where a.name = 'aws_lambda') then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = 'This server offers the extension aws_lambda itself: the stand-in must not take its place.',
      hint = 'Run "create extension aws_lambda cascade" instead.';
  end if;
  if exists (
    select from pg_namespace n
    where n.nspname in ('aws_commons', 'aws_lambda')
      and obj_description(n.oid, 'pg_namespace') is distinct from 'Stand-in for the extension of RDS.'
  ) then
    raise exception using errcode = 'duplicate_schema',
      message = 'This database has a schema aws_commons or aws_lambda that is not this stand-in.',
      hint = 'Drop it first if nobody needs it.';
  end if;
end $$;

create schema if not exists aws_commons;
create schema if not exists aws_lambda;
comment on schema aws_commons is 'Stand-in for the extension of RDS.';
comment on schema aws_lambda is 'Stand-in for the extension of RDS.';
grant usage on schema aws_commons to public;

do $$ begin
  create type aws_commons._lambda_function_arn_1 as (function_name text, region text);
exception when duplicate_object then null;
end $$;

create or replace function aws_commons.create_lambda_function_arn(function_name text, region text default null)
returns aws_commons._lambda_function_arn_1
language sql immutable
as $$ select row($1, $2)::aws_commons._lambda_function_arn_1 $$;
comment on function aws_commons.create_lambda_function_arn(text, text) is 'A Lambda function, by its name or ARN, and region.';

-- What aws_lambda_at_once.sql has made, if it was run.
drop table if exists aws_lambda.answer;
drop function if exists aws_lambda.keep_answer();

create or replace function aws_lambda.invokes_at_commit() returns boolean
language sql immutable
as $$ select true $$;
comment on function aws_lambda.invokes_at_commit() is
  'Exists where invocations happen at the commit: what invokes must not count on one before it.';

-- The one function that aws_lambda_at_once.sql replaces.
create or replace function aws_lambda.carry(
  function_name text, region text, payload text, invocation_type text, log_type text, context text, qualifier text,
  out status_code integer, out answer text, out executed_version text, out log_result text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The id keeps two invocations of one transaction apart: Postgres sends equal notifications once.
  message text := json_strip_nulls(json_build_object(
    'id', gen_random_uuid(), 'functionName', function_name, 'region', region, 'qualifier', qualifier,
    'context', context, 'payload', payload));
begin
  if invocation_type = 'RequestResponse' then
    raise exception using errcode = 'feature_not_supported',
      message = 'This stand-in for aws_lambda invokes at the commit, so there is no answer to wait for.',
      hint = 'Pass the invocation type ''Event'', or install infra/local/aws_lambda_at_once.sql.';
  end if;
  if octet_length(message) >= 8000 then
    raise exception using errcode = 'program_limit_exceeded',
      message = format('This stand-in for aws_lambda carries less than 8,000 bytes, got %s with the payload.', octet_length(message)),
      hint = 'A notification of Postgres holds no more: pass less, or install infra/local/aws_lambda_at_once.sql.';
  end if;
  if invocation_type = 'Event' then
    perform pg_notify('aws_lambda', message);
  end if;
  status_code := case invocation_type when 'Event' then 202 else 204 end;
end $$;
comment on function aws_lambda.carry(text, text, text, text, text, text, text) is
  'Carries a checked invocation: by a notification on the channel aws_lambda.';

-- Checks what Lambda and the extension check.
create or replace function aws_lambda.check_and_carry(
  function_name text, region text, payload text, invocation_type text, log_type text, context text, qualifier text,
  out status_code integer, out answer text, out executed_version text, out log_result text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  arn text[] := regexp_match(function_name, '^arn:aws[a-z-]*:lambda:([a-z0-9-]+):\d{12}:function:[^:]+(?::([^:]+))?$');
begin
  if function_name !~ '^[A-Za-z0-9:_$-]{1,170}$' then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('Expected the name or ARN of a Lambda function, got "%s".', left(function_name, 200));
  end if;
  if coalesce(invocation_type, '') not in ('RequestResponse', 'Event', 'DryRun') then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('Expected the invocation type RequestResponse, Event or DryRun, got "%s".', invocation_type);
  end if;
  if coalesce(log_type, '') not in ('None', 'Tail') then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('Expected the log type None or Tail, got "%s".', log_type);
  end if;
  if region !~ '^[a-z0-9-]+$' or region <> arn[1] then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('Expected a region, that of the ARN if there is one, got "%s" with "%s".', region, function_name);
  end if;
  if qualifier !~ '^[A-Za-z0-9_$-]+$' or qualifier <> arn[2] then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('Expected a qualifier, that of the ARN if there is one, got "%s" with "%s".', qualifier, function_name);
  end if;
  select c.* into status_code, answer, executed_version, log_result
  from aws_lambda.carry(function_name, coalesce(region, arn[1]), payload, invocation_type, log_type, context, qualifier) c;
end $$;
comment on function aws_lambda.check_and_carry(text, text, text, text, text, text, text) is
  'Behind the four forms of aws_lambda.invoke.';

-- The four forms are SQL functions because only there an input and an output may have the same name, as RDS has it.
create or replace function aws_lambda.invoke(
  in function_name text, in payload json, in region text default null,
  in invocation_type text default 'RequestResponse', in log_type text default 'None',
  in context json default null, in qualifier varchar(128) default null,
  out status_code integer, out payload json, out executed_version text, out log_result text
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.status_code, c.answer::json, c.executed_version, c.log_result
  from aws_lambda.check_and_carry($1, $3, $2::text, $4, $5, $6::text, $7) c
$$;

create or replace function aws_lambda.invoke(
  in function_name aws_commons._lambda_function_arn_1, in payload json,
  in invocation_type text default 'RequestResponse', in log_type text default 'None',
  in context json default null, in qualifier varchar(128) default null,
  out status_code integer, out payload json, out executed_version text, out log_result text
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.status_code, c.answer::json, c.executed_version, c.log_result
  from aws_lambda.check_and_carry(($1).function_name, ($1).region, $2::text, $3, $4, $5::text, $6) c
$$;

create or replace function aws_lambda.invoke(
  in function_name text, in payload jsonb, in region text default null,
  in invocation_type text default 'RequestResponse', in log_type text default 'None',
  in context jsonb default null, in qualifier varchar(128) default null,
  out status_code integer, out payload jsonb, out executed_version text, out log_result text
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.status_code, c.answer::jsonb, c.executed_version, c.log_result
  from aws_lambda.check_and_carry($1, $3, $2::text, $4, $5, $6::text, $7) c
$$;

create or replace function aws_lambda.invoke(
  in function_name aws_commons._lambda_function_arn_1, in payload jsonb,
  in invocation_type text default 'RequestResponse', in log_type text default 'None',
  in context jsonb default null, in qualifier varchar(128) default null,
  out status_code integer, out payload jsonb, out executed_version text, out log_result text
)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.status_code, c.answer::jsonb, c.executed_version, c.log_result
  from aws_lambda.check_and_carry(($1).function_name, ($1).region, $2::text, $3, $4, $5::text, $6) c
$$;

-- As on RDS: who may invoke is granted usage on the schema, and execute.
revoke execute on all functions in schema aws_lambda from public;

commit;
