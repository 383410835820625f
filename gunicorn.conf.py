"""gunicorn's configuration, made from the service's settings. `gunicorn app:app` finds it where it is started."""

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

# A token of 4,000 characters fits into the line, one of 8,000 into a field; a longer one than that is the
# application's to refuse, which says why.
limit_request_line = 8190
limit_request_field_size = 32768
# The time that gunicorn takes to read a head grows with the square of its size.
limit_request_fields = 64

# Who stands in front is known from CASES_TRUSTED_HOPS, to the application. By default gunicorn believes loopback.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

# Of a unix: socket that gunicorn itself makes, where `serve` is not used.
umask = 0o117

# Its socket would be made in the home directory, for commands that nobody needs.
control_socket_disable = True

# The heartbeat of a worker is a file's time stamp: in memory, no slow disk delays it.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  gunicorn makes its own file there


def on_starting(server: Any) -> None:
    """Refuse what the worker cannot do, and warn once of what is most likely a mistake."""
    if server.cfg.is_ssl:
        sys.exit(
            "cases-service: gunicorn's --certfile and --keyfile: TLS ends at a proxy in front, and not here;"
            " leave them out and see docs/deployment.md"
        )
    if "SCRIPT_NAME" in server.cfg.env:
        sys.exit("cases-service: gunicorn's --env SCRIPT_NAME: leave it out and set CASES_PUBLIC_URL")
    logs.configure(_settings)
    logs.structure_everything()
    # gunicorn would start a second master beside this one, from arguments that `serve` has made.
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
    """Receive the signals that `serve` held back until gunicorn could handle them, and do the same for workers."""
    metrics_files.make()
    launch.release_signals()
    launch.hold_signals_in_new_workers()


def post_worker_init(_worker: Any) -> None:
    """Receive them in a worker, and spare the garbage collector what the start has made: it stays."""
    launch.release_signals()
    gc.collect()
    gc.freeze()


def worker_exit(_server: Any, worker: Any) -> None:
    """Remove what a killed master leaves behind."""
    if os.getppid() != worker.ppid:
        metrics_files.remove()


def child_exit(_server: Any, _worker: Any) -> None:
    """Let the metrics show living workers only."""
    metrics_files.clear_dead()


def on_exit(_server: Any) -> None:
    """Wait until the embedded server is down, where `serve` started one and nobody else uses it."""
    metrics_files.remove()
    launch.leave_embedded_server(_settings)
