"""The statements of requests: each function builds one query."""
