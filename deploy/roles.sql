-- The roles of docs/security.md, and a database for them. Once, as a superuser, before the first init-db:
--     ADMIN_PASSWORD=... SERVICE_PASSWORD=... psql --set ON_ERROR_STOP=1 --file deploy/roles.sql postgres
-- CASES_ADMIN_DATABASE_URL then names cases_admin, and DATABASE_URL cases_service. With WRITER_PASSWORD there is one more:
-- CASES_WRITE_DATABASE_URL names cases_writer, and requests may change cases.
\getenv admin_password ADMIN_PASSWORD
\getenv service_password SERVICE_PASSWORD
\set writer_password ''
\getenv writer_password WRITER_PASSWORD
select :'writer_password' <> '' as has_writer \gset

-- Owns the schema. Nobody logs in as it: init-db takes its place.
create role cases_owner nologin;

-- For init-db, load, and the commands for tokens and keys. Without `set role` it cannot change the schema.
create role cases_admin login noinherit password :'admin_password';
grant cases_owner to cases_admin;

-- For the service. What it may do, init-db says.
create role cases_service login password :'service_password';

create database cases owner cases_owner template template0 encoding 'UTF8';
revoke all on database cases from public;
grant connect, temporary on database cases to cases_admin;
grant connect on database cases to cases_service;

\if :has_writer
-- For requests that change cases, and imports, which stage their lines. What it may do, init-db says.
create role cases_writer login password :'writer_password';
grant connect, temporary on database cases to cases_writer;
\endif
