-- What the planner is told of organizations, and a look at the tables by it: without this, a large organization among very
-- many small ones is read slowly.

-- step: planner
alter table users alter column organization_id set (n_distinct = 1);
alter table api_tokens alter column organization_id set (n_distinct = 1);
alter table signing_keys alter column organization_id set (n_distinct = 1);
alter table visitors alter column organization_id set (n_distinct = 1);
alter table contacts alter column organization_id set (n_distinct = 1);
alter table case_funnel_stages alter column organization_id set (n_distinct = 1);
alter table cases alter column organization_id set (n_distinct = 1);
alter table activities alter column organization_id set (n_distinct = 1);
alter table messages alter column organization_id set (n_distinct = 1);
alter table events alter column organization_id set (n_distinct = 1);
alter table import_runs alter column organization_id set (n_distinct = 1);
alter table removed_rows alter column organization_id set (n_distinct = 1);
alter table erased_visitors alter column organization_id set (n_distinct = 1);
analyze users;
analyze api_tokens;
analyze signing_keys;
analyze visitors;
analyze contacts;
analyze case_funnel_stages;
analyze cases;
analyze activities;
analyze messages;
analyze events;
analyze import_runs;
analyze removed_rows;
analyze erased_visitors;
