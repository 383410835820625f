-- The cases of an organization in the order of a time, whatever contact they have. They can be read meanwhile, and not
-- be written.
create index cases_of_organization_by_creation on cases (organization_id, created_at, id);
create index cases_of_organization_by_update on cases (organization_id, updated_at, id);
