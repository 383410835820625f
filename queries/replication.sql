-- Positions in the write-ahead log, in bytes since its beginning. Neither statement reads a table.

-- name: get_flushed_wal
-- On the primary: all commits lie before this. Null on a replica.
select case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint end;

-- name: get_replayed_wal
-- On a replica: everything before this is visible there. Null on a primary.
select case when pg_is_in_recovery() then pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint end;
