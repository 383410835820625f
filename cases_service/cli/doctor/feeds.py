"""Checks that feeds still come."""

from datetime import timedelta
from typing import Final

from cases_service.cases import timestamps
from cases_service.cli.doctor.findings import AnyConnection, Verdict, list_some
from cases_service.database.statements import statements

_SQL: Final = statements("doctor")
_MINUTES_FROM: Final = 120


def check_feeds(connection: AnyConnection) -> Verdict:
    """Check that no feed that came regularly is late."""
    rows = connection.execute(_SQL["list_late_feeds_everywhere"]).fetchall()
    if not rows:
        return "ok", "none that came regularly is late"
    late = list_some(
        [
            f"organization {organization_id}, last at {timestamps.from_datetime(last_at)}, every {_spell(pause)} before"
            for organization_id, last_at, pause in rows
        ]
    )
    return "warning", f"no load or import came lately for {late}: see who sends them, and what they are answered"


def _spell(pause: timedelta) -> str:
    seconds = pause.total_seconds()
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"
