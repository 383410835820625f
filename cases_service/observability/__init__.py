"""How the service is watched: the log, metrics, and traces."""
