-- Every text has a bound, so that an answer has one, too. Nobody is kept from a table for longer than a moment: existing
-- rows are looked at while they are read and written.

-- step: refuse texts are longer than the schema allows, shorten them and run init-db again
select
    count(*) over (),
    format('%s %s: %s has %s characters', found.relation, found.id, found.field, char_length(found.value))
from (
    select 'organizations', organization_id, c.*
    from organizations
    cross join lateral (values ('name', name, 256)) c
    union all
    select 'users', id, c.*
    from users
    cross join lateral (
        values
            ('email', email, 256),
            ('first_name', first_name, 256),
            ('last_name', last_name, 256),
            ('alias', alias, 256),
            ('title', title, 256),
            ('avatar_url', avatar_url, 2048)
    ) c
    union all
    select 'api_tokens', id, c.*
    from api_tokens
    cross join lateral (values ('description', description, 256)) c
    union all
    select 'signing_keys', id, c.*
    from signing_keys
    cross join lateral (
        values
            ('encrypted_secret', encrypted_secret, 8192),
            ('public_key', public_key, 8192)
    ) c
    union all
    select 'contacts', id, c.*
    from contacts
    cross join lateral (
        values
            ('first_name', first_name, 256),
            ('last_name', last_name, 256),
            ('email', email, 256),
            ('phone', phone, 256)
    ) c
    union all
    select 'case_funnel_stages', id, c.*
    from case_funnel_stages
    cross join lateral (values ('name', name, 256)) c
    union all
    select 'cases', id, c.*
    from cases
    cross join lateral (values ('subject', subject, 1000), ('description', description, 65536)) c
) found (relation, id, field, value, bound)
where char_length(found.value) > found.bound
limit 3;

-- step: transaction
alter table organizations add constraint organizations_text_lengths check (
    char_length(name) <= 256
) not valid;

-- step: transaction
alter table users add constraint users_text_lengths check (
    char_length(email) <= 256
    and char_length(first_name) <= 256
    and char_length(last_name) <= 256
    and char_length(alias) <= 256
    and char_length(title) <= 256
    and char_length(avatar_url) <= 2048
) not valid;

-- step: transaction
alter table api_tokens add constraint api_tokens_text_lengths check (
    char_length(description) <= 256
) not valid;

-- step: transaction
alter table signing_keys add constraint signing_keys_text_lengths check (
    char_length(encrypted_secret) <= 8192
    and char_length(public_key) <= 8192
) not valid;

-- step: transaction
alter table contacts add constraint contacts_text_lengths check (
    char_length(first_name) <= 256
    and char_length(last_name) <= 256
    and char_length(email) <= 256
    and char_length(phone) <= 256
) not valid;

-- step: transaction
alter table case_funnel_stages add constraint case_funnel_stages_text_lengths check (
    char_length(name) <= 256
) not valid;

-- step: transaction
alter table cases add constraint cases_text_lengths check (
    char_length(subject) <= 1000
    and char_length(description) <= 65536
) not valid;

-- step: outside
alter table organizations validate constraint organizations_text_lengths;
alter table users validate constraint users_text_lengths;
alter table api_tokens validate constraint api_tokens_text_lengths;
alter table signing_keys validate constraint signing_keys_text_lengths;
alter table contacts validate constraint contacts_text_lengths;
alter table case_funnel_stages validate constraint case_funnel_stages_text_lengths;
alter table cases validate constraint cases_text_lengths;
