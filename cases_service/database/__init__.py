"""How PostgreSQL is reached: the connection pool, pipelined statements, replicas, migrations."""
