"""The database: connection pool, sessions, pipelined round trips, fair turns, replicas, migrations."""
