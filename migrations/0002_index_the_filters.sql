-- Filters are served from indexes of their own. The new column is the last one, as it is in schema.sql.
alter table cases add column facet smallint not null generated always as (
    priority * 4
    + case latest_messaging_channel when 'email' then 1 when 'whatsapp' then 2 when 'webchat' then 3 else 0 end
) stored;

create index cases_of_contact_by_status_and_creation on cases (organization_id, contact_id, status, created_at, id);
create index cases_of_contact_by_status_and_update on cases (organization_id, contact_id, status, updated_at, id);
create index cases_of_contact_by_facet_and_creation on cases (organization_id, contact_id, facet, created_at, id);
create index cases_of_contact_by_facet_and_update on cases (organization_id, contact_id, facet, updated_at, id);
