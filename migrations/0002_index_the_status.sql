-- One index for each sort column, for the cases of one status: a filter that matches few of a visitor's many cases is served from here.
create index cases_of_contact_by_status_and_creation on cases (organization_id, contact_id, status, created_at, id);
create index cases_of_contact_by_status_and_update on cases (organization_id, contact_id, status, updated_at, id);
