-- The cases of an organization in the order of a time, whatever contact they have. They can be read and written
-- meanwhile.

-- step: outside
drop index concurrently if exists cases_of_organization_by_creation;
create index concurrently cases_of_organization_by_creation on cases (organization_id, created_at, id);
drop index concurrently if exists cases_of_organization_by_update;
create index concurrently cases_of_organization_by_update on cases (organization_id, updated_at, id);
