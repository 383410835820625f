-- How far the write-ahead log has come, as bytes since its beginning. Both read no table.

-- name: get_flushed_wal
-- On the primary: what is committed lies before this. Null on a server that is none.
select case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint end;

-- name: get_replayed_wal
-- On a replica: what lies before this is seen there. Null on a server that is none.
select case when pg_is_in_recovery() then pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint end;
