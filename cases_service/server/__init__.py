"""How the process is served: the gunicorn worker, and its launch."""
