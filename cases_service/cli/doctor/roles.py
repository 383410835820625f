"""Checks what the roles of the service and of the commands may do and see."""

from typing import Final

from cases_service.cli.doctor.database import connect_as_service
from cases_service.cli.doctor.findings import AnyConnection, Status, Verdict, list_some, value_of
from cases_service.database.statements import statements
from cases_service.settings import Settings

_SQL: Final = statements("session")


def check_rights(connection: AnyConnection) -> Verdict:
    """Check that the role of the service may read what it serves."""
    rows = connection.execute(_SQL["list_missing_rights"]).fetchall()
    if not rows:
        return "ok", "the role of DATABASE_URL may read what it serves"
    status: Status = "warning" if all(is_dispensable for _, is_dispensable in rows) else "failure"
    missing = list_some([name for name, _ in rows])
    advice = "run cases-service init-db with CASES_ADMIN_DATABASE_URL"
    return status, f"the role of DATABASE_URL lacks {missing}: {advice} (docs/security.md)"


def check_writer(url: str, settings: Settings) -> Verdict:
    """Check that requests that write can, and only for one organization at a time."""
    with connect_as_service(url, settings) as writer:
        missing = [name for (name,) in writer.execute(_SQL["list_missing_writer_rights"]).fetchall()]
        is_bound = value_of(writer, _SQL["is_bound_by_row_security"])
    if missing:
        advice = "run cases-service init-db with CASES_WRITE_DATABASE_URL, too"
        return (
            "failure",
            f"the role of CASES_WRITE_DATABASE_URL lacks {list_some(missing)}: {advice} (docs/security.md)",
        )
    if not is_bound:
        return "warning", "row security does not hold for the role of CASES_WRITE_DATABASE_URL (docs/security.md)"
    return "ok", "the role of CASES_WRITE_DATABASE_URL may write cases, of one organization at a time"


def check_row_security(connection: AnyConnection) -> Verdict:
    """Check that row security binds the role of the service."""
    name, is_superuser, bypasses = connection.execute(_SQL["get_role"]).fetchone() or ("", False, False)
    if value_of(connection, _SQL["is_bound_by_row_security"]):
        return "ok", f"holds for {name}"
    why = "is a superuser" if is_superuser else "has BYPASSRLS" if bypasses else "owns tables that do not force it"
    return "warning", f"does not hold for {name}, which {why}: serve with another role (docs/security.md)"


def check_sight(connection: AnyConnection) -> Verdict:
    """Check that the role of the commands sees every organization."""
    if value_of(connection, _SQL["sees_every_organization"]):
        return "ok", "the role of the commands sees every organization"
    return "warning", "no keys and tokens were looked at, as row security hides them: set CASES_ADMIN_DATABASE_URL, too"
