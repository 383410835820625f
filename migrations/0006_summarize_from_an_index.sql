-- The index by update holds what the summary counts and filters by. Cases can be read meanwhile, and not be written.
alter index cases_of_contact_by_update rename to cases_of_contact_by_update_alone;
create index cases_of_contact_by_update on cases (organization_id, contact_id, updated_at, id)
    include (created_at, status, priority, channel_number, is_waiting, unread_message_count);
drop index cases_of_contact_by_update_alone;
