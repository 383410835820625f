-- What comes late of a removed case's conversations is known as that by the activities that were removed.

-- step: transaction
alter table removed_rows drop constraint removed_rows_type_known;
alter table removed_rows
    add constraint removed_rows_type_known check (record_type in ('contact', 'case', 'activity')) not valid;

-- step: outside
alter table removed_rows validate constraint removed_rows_type_known;
