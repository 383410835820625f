-- When a token or key was last used, to the minute or so.
alter table api_tokens add column last_used_at timestamptz;
alter table signing_keys add column last_used_at timestamptz;

-- Row security, on top of the predicate in every statement: a statement that forgot its organization finds nothing.
-- Forced, so that it holds for the owner of the tables, too. A transaction says whose rows it is about in the setting
-- cases.organization_id (after a transaction such a setting is '' and not null). Only the owner of the schema, and whom
-- init-db adds to the policy, may see every organization, and has to say so.

alter table organizations enable row level security, force row level security;
create policy own_organization on organizations
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on organizations to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table users enable row level security, force row level security;
create policy own_organization on users
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on users to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table api_tokens enable row level security, force row level security;
create policy own_organization on api_tokens
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on api_tokens to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table signing_keys enable row level security, force row level security;
create policy own_organization on signing_keys
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on signing_keys to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table visitors enable row level security, force row level security;
create policy own_organization on visitors
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on visitors to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table contacts enable row level security, force row level security;
create policy own_organization on contacts
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on contacts to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table case_funnel_stages enable row level security, force row level security;
create policy own_organization on case_funnel_stages
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on case_funnel_stages to current_user
    using (current_setting('cases.every_organization', true) = 'on');

alter table cases enable row level security, force row level security;
create policy own_organization on cases
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
create policy administration on cases to current_user
    using (current_setting('cases.every_organization', true) = 'on');
