"""The process that serves: gunicorn's start, its workers, and the connections of their clients."""
