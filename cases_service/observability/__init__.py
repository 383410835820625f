"""Observability: the log, metrics, and traces."""
