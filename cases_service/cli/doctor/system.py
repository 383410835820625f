"""Checks this process: its settings, its open files, and what counts its requests."""

from collections.abc import Sequence
from importlib import import_module

from cases_service.cli.doctor.findings import Verdict
from cases_service.server import descriptors
from cases_service.settings import Settings


def check_setting_names(unknown: Sequence[str]) -> Verdict:
    """Check that each CASES_ variable of the environment is a setting."""
    if unknown:
        return "warning", f"{', '.join(unknown)}: no such setting; the README lists them"
    return "ok", "valid"


def check_open_files(settings: Settings) -> Verdict:
    """Check that the limit of open files suffices for the connections of clients."""
    limit = descriptors.connection_limit(settings)
    if limit < descriptors.CONNECTIONS:
        return "warning", (
            f"the limit of open files leaves each worker {limit} connections of clients: beyond, those that have been"
            " silent for longest are closed; raise the hard limit (LimitNOFILE, ulimit -Hn)"
        )
    return "ok", f"{limit:,} connections of clients for each worker"


def check_rate_limits(settings: Settings) -> Verdict:
    """Check that requests can be counted, if their rates are limited."""
    if not settings.limits_rates:
        return "ok", "none is set"
    if settings.rate_limit_storage == "memory://":
        return "ok", "each worker counts for itself (CASES_RATE_LIMIT_STORAGE names a Redis for all of them)"
    rate_limits = import_module("cases_service.api.rate_limits")  # it takes a tenth of a second
    try:
        rate_limits.try_storage(settings)
    except rate_limits.StorageAwayError as error:
        return "failure", f"requests pass uncounted, as Redis does not count: {error}; check CASES_RATE_LIMIT_STORAGE"
    return "ok", "Redis counts for all workers"
