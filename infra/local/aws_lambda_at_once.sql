-- After aws_lambda.sql: invocations happen at once, inside the transaction and before its commit, as on RDS. The server
-- runs curl (COPY … FROM PROGRAM): it must be there, and the role a superuser or in pg_execute_server_program.
-- Requests are not signed, so this reaches serverless-offline or LocalStack, never AWS. Where, says
--
--   alter database … set aws_lambda.endpoint_override = 'http://127.0.0.1:3002';
--
-- aws_lambda.connect_timeout_ms and request_timeout_ms hold as on RDS. Running aws_lambda.sql again undoes this.
begin;
set local client_min_messages = warning;

do $$ begin
  if to_regprocedure('aws_lambda.check_and_carry(text, text, text, text, text, text, text)') is null then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = 'This changes the stand-in for aws_lambda, and there is none: run aws_lambda.sql before.';
  end if;
  if exists (
    select from pg_namespace n where n.nspname = 'aws_lambda' and pg_get_userbyid(n.nspowner) <> current_user
  ) then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = format('This stand-in for aws_lambda belongs to another role than %s.', current_user),
      hint = 'Run both files as the same role.';
  end if;
  if not pg_has_role('pg_execute_server_program', 'usage') then
    raise exception using errcode = 'insufficient_privilege',
      message = format('The role %s may not run programs on the server, so it cannot invoke at once.', current_user),
      hint = 'Run this as a superuser, or leave it: aws_lambda.sql alone invokes at the commit.';
  end if;
end $$;

drop function if exists aws_lambda.invokes_at_commit();

-- What a program writes can be had by COPY into a table only. This one is never written: its trigger keeps each line
-- in a setting. So there is nothing to roll back, to vacuum, or that transactions could disagree about.
create table if not exists aws_lambda.answer (line text);
create or replace function aws_lambda.keep_answer() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('aws_lambda.answer', current_setting('aws_lambda.answer') || coalesce(new.line, '') || E'\n', true);
  return null;
end $$;
create or replace trigger keep_answer before insert on aws_lambda.answer
for each row execute function aws_lambda.keep_answer();
alter table aws_lambda.answer enable always trigger keep_answer; -- also where replication applies changes

-- A value in the configuration of curl.
create or replace function aws_lambda.quote_for_curl(value text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select '"' || replace(replace(replace(replace(replace(
    value, '\', '\\'), '"', '\"'), E'\n', '\n'), E'\r', '\r'), E'\t', '\t') || '"'
$$;

-- The request, as a configuration of curl.
create or replace function aws_lambda.request(
  function_name text, region text, payload text, invocation_type text, log_type text, context text, qualifier text
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  endpoint text := nullif(current_setting('aws_lambda.endpoint_override', true), '');
  connect_ms integer := coalesce(nullif(current_setting('aws_lambda.connect_timeout_ms', true), '')::integer, 1000);
  request_ms integer := coalesce(nullif(current_setting('aws_lambda.request_timeout_ms', true), '')::integer, 3000);
begin
  if endpoint is null then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = 'This stand-in for aws_lambda does not know where Lambda is.',
      hint = 'alter database … set aws_lambda.endpoint_override = ''http://127.0.0.1:3002'', then connect again.';
  end if;
  return concat_ws(E'\n',
    'url = ' || aws_lambda.quote_for_curl(
      rtrim(endpoint, '/') || '/2015-03-31/functions/' || function_name || '/invocations' || coalesce('?Qualifier=' || qualifier, '')),
    'data-raw = ' || aws_lambda.quote_for_curl(coalesce(payload, '')),
    'header = "Content-Type: application/json"',
    'header = "Expect:"', -- the request goes out whole
    'header = ' || aws_lambda.quote_for_curl('X-Amz-Invocation-Type: ' || invocation_type),
    'header = ' || aws_lambda.quote_for_curl('X-Amz-Log-Type: ' || log_type),
    'header = ' || aws_lambda.quote_for_curl(
      'X-Amz-Client-Context: ' || replace(encode(convert_to(context, 'UTF8'), 'base64'), E'\n', '')),
    -- LocalStack reads the region from here, and asks for nothing more.
    'header = ' || aws_lambda.quote_for_curl(
      'Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/' || region
      || '/lambda/aws4_request, SignedHeaders=host, Signature=none'),
    format('connect-timeout = %s', connect_ms / 1000.0),
    format('max-time = %s', (connect_ms + request_ms) / 1000.0),
    'include', 'silent', 'show-error', 'globoff', 'noproxy = "*"', 'proto = "=http,https"');
end $$;

create or replace function aws_lambda.carry(
  function_name text, region text, payload text, invocation_type text, log_type text, context text, qualifier text,
  out status_code integer, out answer text, out executed_version text, out log_result text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Nothing that anybody passed is a word of the shell: it is one quoted argument, and curl reads it as its configuration.
  request text := '''' || replace(
    aws_lambda.request(function_name, region, payload, invocation_type, log_type, context, qualifier), '''', '''\''''') || '''';
  -- Without carriage returns: COPY wants all lines to end in the same way.
  program text := '{ printf %s ' || request || ' | curl -q --config - 2>&1; printf ''\n%s'' $?; } | tr -d ''\r''';
  said text;
  exit_code text;
  head text;
  failure text;
begin
  if octet_length(program) > 100000 then
    raise exception using errcode = 'program_limit_exceeded',
      message = format('This stand-in for aws_lambda carries 100,000 bytes at most, got %s with the payload.', octet_length(program));
  end if;
  perform set_config('aws_lambda.answer', '', true);
  execute format(
    'copy aws_lambda.answer (line) from program %L with (format csv, delimiter e''\x02'', quote e''\x01'', encoding ''UTF8'')', program);
  said := rtrim(current_setting('aws_lambda.answer'), E'\n');
  perform set_config('aws_lambda.answer', '', true);

  exit_code := substring(said from '[0-9]+$');
  said := rtrim(left(said, -length(exit_code)), E'\n');
  if exit_code = '127' then
    raise exception using errcode = 'undefined_file',
      message = 'This stand-in for aws_lambda runs curl, and the server has none.', hint = 'Install curl where the server runs.';
  end if;
  if exit_code <> '0' then
    raise exception using errcode = 'external_routine_invocation_exception', message = 'invoke API failed', detail = format(
      'AWS Lambda client returned ''%s''', case when exit_code in ('6', '7') then 'Unable to connect to endpoint' else said end);
  end if;
  head := split_part(said, E'\n\n', 1);
  answer := nullif(substr(said, length(head) + 3), '');
  status_code := substring(head from '^HTTP/\S+ (\d+)')::integer;
  executed_version := substring(head from '(?in)^x-amz-executed-version: *(.*)$');
  log_result := substring(head from '(?in)^x-amz-log-result: *(.*)$');
  failure := substring(head from '(?in)^x-amz-function-error: *(.*)$');
  if status_code >= 300 then
    raise exception using errcode = 'external_routine_invocation_exception', message = 'invoke API failed',
      detail = format('AWS Lambda client returned ''%s %s''', status_code, answer);
  end if;
  if failure is not null then
    raise exception using errcode = 'external_routine_exception', message = 'lambda invocation failed',
      detail = format('"%s" returned error "%s", details: "%s".', function_name, failure, answer);
  end if;
end $$;
comment on function aws_lambda.carry(text, text, text, text, text, text, text) is
  'Carries a checked invocation: by curl, at once.';

revoke execute on all functions in schema aws_lambda from public;

commit;
