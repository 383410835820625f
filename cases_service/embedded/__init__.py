"""The embedded PostgreSQL server, which needs no installation."""
