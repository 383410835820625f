-- What an API token may do. Every token made before may read the cases of visitors, as before.
alter table api_tokens add column scopes text[] not null default '{visitors:read}';
alter table api_tokens
    add constraint api_tokens_scopes_known check (
        scopes <@ '{visitors:read,visitors:write,cases:read,cases:write}'::text[] and cardinality(scopes) > 0
    );
