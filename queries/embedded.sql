-- What an embedded server has beside its database.

-- name: make_service_role!
-- Data directories of earlier releases lack it. Two users may join at the same time.
do $$
begin
    if not exists (select from pg_roles where rolname = 'cases_service') then
        create role cases_service login;
    end if;
exception
    when duplicate_object or unique_violation then null;
end
$$;

-- name: make_writer_role!
-- Likewise.
do $$
begin
    if not exists (select from pg_roles where rolname = 'cases_writer') then
        create role cases_writer login;
    end if;
exception
    when duplicate_object or unique_violation then null;
end
$$;
