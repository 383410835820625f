"""gunicorn's configuration, from the service's settings. `gunicorn app:app` finds it in the current directory."""

import gc
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cases_service.cli import standard_streams
from cases_service.observability import logs, metrics_files, tracing
from cases_service.server import descriptors, launch
from cases_service.settings import SettingsError, read_settings, unknown_names

standard_streams.open_missing()

try:
    _settings = read_settings()
    _settings.require_database_url()
    tracing.check()
except SettingsError as error:
    sys.exit(f"cases-service: {error}")

bind = _settings.addresses
workers = _settings.workers
threads = _settings.threads
keepalive = _settings.keepalive
graceful_timeout = _settings.graceful_timeout

worker_class = "cases_service.server.worker.CasesWorker"
logger_class = "cases_service.server.worker.CasesLogger"
logconfig_dict = logs.logging_config(_settings)
loglevel = _settings.log_level

# A token of 4,000 characters fits into the request line, one of 8,000 into a header field. The application refuses
# longer ones, and says why.
limit_request_line = 8190
limit_request_field_size = 32768
# gunicorn's time to parse a head grows with the square of its size.
limit_request_fields = 64

# The application handles proxies itself, by CASES_TRUSTED_HOPS. By default gunicorn trusts loopback.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

# For a Unix socket that gunicorn itself creates, when run without `serve`.
umask = 0o117

# It would create a socket in the home directory, for commands that nobody needs.
control_socket_disable = True

# A worker's heartbeat is a file's time stamp: in memory, so that no slow disk delays it.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  gunicorn makes its own file there


def on_starting(server: Any) -> None:
    """Reject unsupported options, and warn once of likely mistakes."""
    if server.cfg.is_ssl:
        sys.exit(
            "cases-service: gunicorn's --certfile and --keyfile: TLS ends at a proxy in front, and not here;"
            " leave them out and see docs/deployment.md"
        )
    if "SCRIPT_NAME" in server.cfg.env:
        sys.exit("cases-service: gunicorn's --env SCRIPT_NAME: leave it out and set CASES_PUBLIC_URL")
    logs.configure(_settings)
    logs.structure_everything()
    # gunicorn would start a second master beside this one, from the arguments of `serve`.
    server.handle_usr2 = partial(server.log.warning, "SIGUSR2 is not supported: SIGHUP replaces the workers")
    for name in unknown_names():
        server.log.warning("%s is not a setting of this service", name)
    wanted = server.cfg.worker_connections
    if (limit := descriptors.connection_limit(_settings, wanted)) < wanted:
        server.log.warning(
            "each worker can have %d connections of clients instead of %d: raise the hard limit of open files"
            " (LimitNOFILE, ulimit -n)",
            limit,
            wanted,
        )
    if not _settings.secret_keys:
        server.log.warning("CASES_SECRET_KEY is not set: no JWT that is signed with an HMAC key can be verified")


def when_ready(_server: Any) -> None:
    """Unblock the signals that `serve` blocked until gunicorn could handle them, and do the same for workers."""
    metrics_files.make()
    launch.release_signals()
    launch.hold_signals_in_new_workers()


def post_worker_init(_worker: Any) -> None:
    """Unblock them in a worker, and exempt the permanent objects made so far from garbage collection."""
    launch.release_signals()
    gc.collect()
    gc.freeze()


def worker_exit(_server: Any, worker: Any) -> None:
    """Remove the files of a killed master."""
    if os.getppid() != worker.ppid:
        metrics_files.remove()


def child_exit(_server: Any, _worker: Any) -> None:
    """Make the metrics show only living workers."""
    metrics_files.clear_dead()


def on_exit(_server: Any) -> None:
    """Wait until the embedded server is down, if `serve` started one and nobody else uses it."""
    metrics_files.remove()
    launch.leave_embedded_server(_settings)
