"""Checks that a contestant's answers are the right ones: same cases, same fields, same order."""

import json
import re
import secrets
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.contestant import Running
from benchmarks.credentials import Credentials
from benchmarks.dataset import (
    CONTACTS,
    ORDINARY_CASES,
    Connection,
    case_with_messages,
    heavy_visitor,
    true_cases,
    true_messages,
    written_cases,
)
from benchmarks.load import Answer, Client, NoAnswerError
from cases_service.cases.schemas import CASE_ATTRIBUTES, MessageSchema

RIGHT: Final = "right"
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(?:Z|\+00:00)")
_PAGE: Final = 10
_TIMEOUT: Final = 20.0

Case = dict[str, Any]


class WrongAnswerError(Exception):
    """An answer is not the right one. The message says how."""


def check(running: Running, credentials: Credentials, connection: Connection) -> dict[str, str]:
    """Return for each kind of page whether the contestant answers it rightly."""
    outcomes = {"walk": _outcome(_check_walk, running, credentials, connection)}
    outcomes["detail"] = _outcome(_check_detail, running, credentials, connection)
    for contacts in CONTACTS:
        name = heavy_visitor(contacts)
        outcomes[name] = _outcome(_check_page, running, credentials, connection, name)
    if running.contestant.name in ("service", "floor"):
        outcomes["messages"] = _outcome(_check_messages, running, credentials, connection)
        outcomes["PATCH"] = _outcome(_check_change, running, credentials, connection)
    return outcomes


def _outcome(checking: Any, *arguments: Any) -> str:
    try:
        checking(*arguments)
    except WrongAnswerError as error:
        return f"wrong: {error}"
    except NoAnswerError:
        return f"no answer within {_TIMEOUT:.0f} s"
    return RIGHT


def _check_walk(running: Running, credentials: Credentials, connection: Connection) -> None:
    """Walk an ordinary visitor's cases by `next` to the end, and a page back by `previous`."""
    truth = true_cases(connection, "ordinary-1", first=0, number=ORDINARY_CASES)
    with Client(running.address) as client:
        page = _get(client, credentials.request("ordinary-1", f"?page_size={_PAGE}"))
        for first in range(0, ORDINARY_CASES, _PAGE):
            _compare(page["results"], truth[first : first + _PAGE])
            if first + _PAGE < ORDINARY_CASES:
                page = _get(client, _follow(credentials, page["next"]))
        if page["next"] is not None:
            raise WrongAnswerError("a link behind the last page")
        page = _get(client, _follow(credentials, page["previous"]))
        _compare(page["results"], truth[_PAGE : 2 * _PAGE])


def _check_detail(running: Running, credentials: Credentials, connection: Connection) -> None:
    truth = true_cases(connection, "ordinary-1", first=0, number=1)
    with Client(running.address) as client:
        _compare([_get(client, credentials.request("ordinary-1", f"/{truth[0]['id']}"))], truth)


def _check_messages(running: Running, credentials: Credentials, connection: Connection) -> None:
    case_id = case_with_messages(connection, "ordinary-1")
    truth = true_messages(connection, case_id, number=_PAGE)
    with Client(running.address) as client:
        page = _get(client, credentials.request("ordinary-1", f"/{case_id}/messages?page_size={_PAGE}"))
        _compare(page["results"], truth, tuple(MessageSchema().fields))
        if page["next"] is None:
            raise WrongAnswerError("a link is missing")


def _check_change(running: Running, credentials: Credentials, connection: Connection) -> None:
    (case_id,) = written_cases(0, 1)
    text = f"Changed by {running.contestant.name} for a look at the answer {secrets.token_hex(8)}"
    with Client(running.address) as client:
        case = _get(client, credentials.write("PATCH", f"/cases/{case_id}", json.dumps({"subject": text}).encode()))
    truth = connection.execute("select subject, updated_at from cases where id = %s", [case_id]).fetchone()
    if tuple(case) != CASE_ATTRIBUTES or truth is None or (case["subject"], truth[0]) != (text, text):
        raise WrongAnswerError("another case, or nothing was written")
    if datetime.fromisoformat(case["updated_at"]) != truth[1].replace(microsecond=truth[1].microsecond // 1000 * 1000):
        raise WrongAnswerError("another updated_at")


def _check_page(running: Running, credentials: Credentials, connection: Connection, external_id: str) -> None:
    truth = true_cases(connection, external_id, first=0, number=2 * _PAGE)
    with Client(running.address) as client:
        page = _get(client, credentials.request(external_id, f"?page_size={_PAGE}"))
        _compare(page["results"], truth[:_PAGE])
        page = _get(client, _follow(credentials, page["next"]))
        _compare(page["results"], truth[_PAGE:])


def _follow(credentials: Credentials, link: str | None) -> bytes:
    if link is None:
        raise WrongAnswerError("a link is missing")
    parts = urlsplit(link)
    return credentials.request_for(f"{parts.path}?{parts.query}")


def _get(client: Client, request: bytes) -> Any:
    answer: Answer = client.ask(request, timeout=_TIMEOUT)
    if answer.status != 200:  # noqa: PLR2004
        raise WrongAnswerError(f"status {answer.status}")
    return json.loads(answer.body)


def _compare(cases: list[Case], truth: list[Case], attributes: tuple[str, ...] = CASE_ATTRIBUTES) -> None:
    if [case.get("id") for case in cases] != [case["id"] for case in truth]:
        raise WrongAnswerError("other cases, or another order")
    for case, true in zip(cases, truth, strict=True):
        if tuple(case) != attributes:
            raise WrongAnswerError("other fields, or another order of them")
        given, expected = _normalized(case), _normalized(true)
        differing = [name for name in attributes if given[name] != expected[name]]
        if differing:
            raise WrongAnswerError(f"another {differing[0]}")


def _normalized(value: Any) -> Any:
    """Return a value with its times in milliseconds: how many decimals it shows is a contestant's own affair."""
    if isinstance(value, dict):
        return {name: _normalized(part) for name, part in value.items()}
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else f"{match[1]}T{match[2]}{(match[3] or '.')[:4]:0<4}Z"
