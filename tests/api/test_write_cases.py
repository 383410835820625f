"""Writing the organization's cases: results, refusals, and their messages."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from cases_service.application import Application
from cases_service.cases.schemas import CASE_ATTRIBUTES
from tests.documents import block
from tests.factories import LONG_AGO, Organization, assert_problem, get
from tests.writing import Writer, contents

NOBODY = "00000000-0000-0000-0000-000000000000"
MAXIMUM = 1024 * 1024


@pytest.fixture
def writer(client: FlaskClient, organization: Organization) -> Writer:
    return Writer(client, organization)


@pytest.fixture
def other(organization: Organization) -> Organization:
    """Another organization with a row of everything."""
    other = Organization(organization.connection, organization.box)
    other.case(other.visitor().contact_ids[0], owner_id=other.user_id, case_funnel_stage_id=other.stage())
    return other


def pointers(response: Any) -> list[str]:
    """Return which members a refused body has wrong."""
    problem = assert_problem(response, 400, "invalid_body")
    assert all(set(error) == {"pointer", "detail"} and error["detail"] for error in problem["errors"])
    return [error["pointer"] for error in problem["errors"]]


class TestCreation:
    def test_it_answers_where_the_case_is_and_the_whole_case(self, writer: Writer) -> None:
        response = writer.send("POST", body={"case_number": "C-1", "priority": 2})
        assert response.status_code == 201
        case = response.get_json()
        assert list(case) == list(CASE_ATTRIBUTES)
        assert response.headers["Location"] == f"http://localhost{writer.organization.cases_path}/{case['id']}"
        again = writer.get(case["id"])
        assert (again.data, again.headers["ETag"]) == (response.data, response.headers["ETag"])
        assert response.headers["Cache-Control"] == "private, no-cache"

    def test_what_is_left_out_is_null_or_has_its_default(self, writer: Writer) -> None:
        case = writer.create(case_number="C-2", priority=4)
        user = str(writer.organization.user_id)
        shown = {name: value for name, value in case.items() if value is not None}
        assert case["created_by_user"]["full_name"] == "Ada Byron"
        for name in ("id", "created_at", "updated_at", "created_by_user", "updated_by_user"):
            del shown[name]
        assert shown == {
            "organization_id": str(writer.organization.id),
            "case_number": "C-2",
            "status": "Open",
            "priority": 4,
            "priority_label": "High",
            "is_closed": False,
            "is_waiting": False,
            "unread_message_count": 0,
            "created_by_user_id": user,
            "updated_by_user_id": user,
            "visitor_unread_message_count": 0,
        }
        assert case["created_at"] == case["updated_at"]

    def test_everything_that_is_editable_is_kept(self, writer: Writer) -> None:
        organization = writer.organization
        given = {
            "case_number": "ü" * 256,
            "priority": 5,
            "contact_id": str(organization.visitor().contact_ids[0]),
            "owner_id": str(organization.user(first_name="Owner")),
            "subject": "s" * 1000,
            "description": "d" * 65536,
            "latest_messaging_channel": "webchat",
            "created_by_user_id": str(organization.user(first_name="Author")),
            "updated_by_user_id": str(organization.user(first_name="Editor")),
            "case_funnel_stage_id": str(organization.stage()),
            "channel_priority": 3,
        }
        case = writer.create(**given)
        assert {name: case[name] for name in given} == given
        names = [case[name]["first_name"] for name in ("owner", "created_by_user", "updated_by_user")]
        assert names == ["Owner", "Author", "Editor"]
        assert (case["contact"]["id"], case["status"]) == (given["contact_id"], "In Progress")

    def test_an_author_and_an_editor_may_be_nobody(self, writer: Writer) -> None:
        case = writer.create(created_by_user_id=None, updated_by_user_id=None)
        assert (case["created_by_user"], case["updated_by_user"]) == (None, None)

    def test_a_new_case_may_be_closed_already(self, writer: Writer) -> None:
        case = writer.create(is_closed=True)
        assert (case["status"], case["is_closed"], case["closed_at"]) == ("Closed", True, case["created_at"])

    def test_a_nested_object_stands_for_its_id(self, writer: Writer) -> None:
        organization = writer.organization
        ids = {
            "contact": str(organization.visitor().contact_ids[0]),
            "owner": str(organization.user_id),
            "created_by_user": str(organization.user()),
            "case_funnel_stage": str(organization.stage()),
        }
        case = writer.create(**{name: {"id": id_.upper(), "name": 5} for name, id_ in ids.items()})
        assert {name: case[f"{name}_id"] for name in ids} == ids

    def test_what_was_read_can_be_sent_back(self, writer: Writer) -> None:
        case = writer.create(owner_id=str(writer.organization.user_id), is_closed=True)
        assert writer.send("PUT", case["id"], case).get_json() == case
        assert writer.patch(case, **case) == case
        copy = writer.create(**{**case, "case_number": "copy"})
        assert copy["id"] != case["id"]

    def test_it_is_seen_by_its_visitor(self, writer: Writer, client: FlaskClient) -> None:
        visitor = writer.organization.visitor()
        case = writer.create(contact_id=str(visitor.contact_ids[0]))
        shown = get(client, writer.organization, f"{visitor.path}/{case['id']}")
        assert shown.get_json() == case

    def test_a_number_that_is_taken_names_the_case_that_has_it(self, writer: Writer) -> None:
        case = writer.create(case_number="taken")
        for method, case_id in (("POST", None), ("PUT", uuid4())):
            problem = assert_problem(
                writer.send(method, case_id, {"case_number": "taken", "priority": 1}), 409, "case_number_taken"
            )
            assert problem["case_id"] == case["id"]
        second = writer.create()
        answer = writer.send("PATCH", second["id"], {"case_number": "taken"})
        assert assert_problem(answer, 409, "case_number_taken")["case_id"] == case["id"]
        assert writer.patch(case, case_number="taken")["updated_at"] == case["updated_at"]

    def test_a_number_of_another_organization_is_free(self, writer: Writer, other: Organization) -> None:
        other.case(None, case_number="theirs")
        assert writer.create(case_number="theirs")


WRONG: dict[str, list[Any]] = {
    "case_number": [None, "", "n" * 257, 5, "a\0b", "\ud800", ["x"], True],
    "priority": [None, 0, 6, "3", 3.0, True, [3], 10**30],
    "contact_id": ["", "x", 5, True, {"id": NOBODY}, NOBODY.replace("-", "")],
    "contact": ["x", 5, [], NOBODY],
    "owner_id": ["me", 0, f"{{{NOBODY}}}"],
    "owner": ["x", 5, [NOBODY]],
    "subject": ["s" * 1001, 5, "a\0", "\udfff", {}],
    "description": ["d" * 65537, False, "\0"],
    "latest_messaging_channel": ["telephony", "", "Email", 1],
    "is_closed": [None, 0, 1, "true", ""],
    "updated_by_user_id": ["x", 5],
    "case_funnel_stage_id": ["x", 5],
    "case_funnel_stage": [5, "x"],
    "channel_priority": [0, 5, "1", 1.5, True],
}
NESTED = ("contact", "owner", "case_funnel_stage")
NULLABLE = (
    "contact_id", "contact", "owner_id", "owner", "subject", "description", "latest_messaging_channel",
    "updated_by_user_id", "case_funnel_stage_id", "case_funnel_stage", "channel_priority",
)  # fmt: skip
REFERENCES = ("contact", "owner", "created_by_user", "updated_by_user", "case_funnel_stage")


def everything(organization: Organization) -> dict[str, Any]:
    """Return a body with every editable attribute, none of which is null."""
    return {
        "case_number": uuid4().hex,
        "priority": 4,
        "contact_id": str(organization.visitor().contact_ids[0]),
        "owner_id": str(organization.user()),
        "subject": "s",
        "description": "d",
        "latest_messaging_channel": "webchat",
        "is_closed": True,
        "created_by_user_id": str(organization.user()),
        "updated_by_user_id": str(organization.user_id),
        "case_funnel_stage_id": str(organization.stage()),
        "channel_priority": 3,
    }


def different(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return what two answers about a case say differently."""
    return {name for name in before if before[name] != after[name]}


class TestBodies:
    @pytest.mark.parametrize("name", WRONG)
    def test_a_wrong_value_is_named(self, writer: Writer, name: str) -> None:
        case = writer.create()
        before = contents(writer.organization.connection, writer.organization)
        for value in WRONG[name]:
            body = {"case_number": "wrong", "priority": 3, name: value}
            for method, case_id in (("POST", None), ("PUT", case["id"]), ("PATCH", case["id"])):
                assert pointers(writer.send(method, case_id, body)) == [f"/{name}"], value
        assert contents(writer.organization.connection, writer.organization) == before

    @pytest.mark.parametrize("value", ["x", 5])
    @pytest.mark.parametrize("name", ["created_by_user_id", "created_by_user"])
    def test_a_wrong_author_is_named_where_there_may_be_one(self, writer: Writer, name: str, value: object) -> None:
        body = {"case_number": "wrong", "priority": 3, name: value}
        for method, case_id in (("POST", None), ("PUT", uuid4())):
            assert pointers(writer.send(method, case_id, body)) == [f"/{name}"]
        assert writer.patch(writer.create(), **{name: value})

    @pytest.mark.parametrize("name", ["case_number", "priority"])
    def test_what_a_case_cannot_be_without_is_named(self, writer: Writer, name: str) -> None:
        body = {"case_number": "x", "priority": 3}
        del body[name]
        for method, case_id in (("POST", None), ("PUT", uuid4()), ("PUT", writer.create()["id"])):
            assert pointers(writer.send(method, case_id, body)) == [f"/{name}"]

    @pytest.mark.parametrize("name", NULLABLE)
    def test_null_is_taken(self, writer: Writer, name: str) -> None:
        column = f"{name}_id" if name in NESTED else name
        full = everything(writer.organization)
        if name in NESTED:
            del full[column]
        assert writer.create(**full | {name: None})[column] is None
        case = writer.create(**everything(writer.organization))
        replaced = writer.send("PUT", case["id"], full | {"case_number": case["case_number"], name: None})
        assert (replaced.status_code, replaced.get_json()[column]) == (200, None)
        case = writer.create(**everything(writer.organization))
        changed = writer.patch(case, **{name: None})
        assert changed[column] is None
        assert different(case, changed) <= {column, column.removesuffix("_id"), "updated_at"}

    @pytest.mark.parametrize("name", REFERENCES)
    def test_a_reference_to_what_is_not_there_or_anothers_is_named(
        self, writer: Writer, other: Organization, name: str
    ) -> None:
        theirs = {"contact": other.visitor().contact_ids[0], "case_funnel_stage": other.stage()}.get(
            name, other.user_id
        )
        case = writer.create(**everything(writer.organization))
        before = contents(writer.organization.connection, writer.organization)
        for value in (NOBODY, str(theirs)):
            # `created_by_user` counts only where a case is made, and `updated_by_user` is never looked at.
            forms: list[dict[str, Any]] = [{f"{name}_id": value}]
            forms += [] if name == "updated_by_user" else [{name: {"id": value}}]
            existing = [] if name == "created_by_user" else [("PUT", case["id"]), ("PATCH", case["id"])]
            for form in forms:
                wrong = f"/{name}_id" if f"{name}_id" in form else f"/{name}/id"
                for method, case_id in (("POST", None), ("PUT", uuid4()), *existing):
                    body = {"case_number": "x", "priority": 3, **form}
                    assert pointers(writer.send(method, case_id, body)) == [wrong]
        assert contents(writer.organization.connection, writer.organization) == before

    def test_every_wrong_member_is_named_at_once(self, writer: Writer) -> None:
        body = {
            "a/b~c": 1,
            "priority": "high",
            "owner_id": NOBODY,
            "contact": {"id": NOBODY},
            "case_funnel_stage": {},
            "subject": 5,
            "updated_by_user_id": NOBODY,
        }
        assert pointers(writer.send("POST", body=body)) == [
            "/case_number", "/subject", "/priority", "/case_funnel_stage/id", "/a~1b~0c",
            "/contact/id", "/owner_id", "/updated_by_user_id",
        ]  # fmt: skip

    def test_the_document_shows_what_is_answered(self, writer: Writer) -> None:
        shown = json.loads(block("docs/api.md", "json", "/owner/id"))
        body = {"case_number": "x", "priority": 9, "owner": {"id": NOBODY}}
        answer = writer.send("POST", body=body).get_json()
        assert answer | {"request_id": shown["request_id"]} == shown

    def test_an_id_and_an_object_have_to_agree(self, writer: Writer) -> None:
        one, another = str(writer.organization.user_id), str(writer.organization.user())
        body = {"case_number": "x", "priority": 1, "owner_id": one, "owner": {"id": another}}
        assert pointers(writer.send("POST", body=body)) == ["/owner/id"]
        assert pointers(writer.send("POST", body={**body, "owner": None})) == ["/owner/id"]
        assert writer.create(owner_id=one.upper(), owner={"id": one})["owner_id"] == one

    @pytest.mark.parametrize(
        ("body", "wrong"),
        [
            (b"", [""]),
            (b"{", [""]),
            (b"[]", [""]),
            (b"null", [""]),
            (b'"x"', [""]),
            (b'{"priority": NaN}', [""]),
            (b'{"priority": -Infinity}', [""]),
            (b'{"priority": 1,}', [""]),
            (b"\xef\xbb\xbf{}", [""]),
            (b'{"subject": "\xff"}', [""]),
            ('{"case_number": "x", "priority": 1}'.encode("utf-16"), [""]),
            (b"[" * 100_000, [""]),
            (b'{"priority": ' + b"1" * 5000 + b"}", [""]),
            (b'{"case_number": "x", "priority": 1, "priority": 1}', ["/priority"]),
            (b'{"case_number": "x", "priority": 1, "owner": {"id": null, "a": [{"b": 1, "b": 1}]}}',
             ["/owner/id", "/owner/a/0/b"]),
            (b'{"case_number": "x", "priority": 1, "status": {"a": 1, "a": 2}}', ["/status/a"]),
            (b'{"case_number": "x", "priority": 1, "": 1, "\\ud800": 2}', ["/", "/\ufffd"]),
        ],
    )  # fmt: skip
    def test_what_is_no_json_is_refused(self, writer: Writer, body: bytes, wrong: list[str]) -> None:
        assert pointers(writer.send("POST", body=body)) == wrong

    def test_of_very_many_wrong_names_the_first_are_named(self, writer: Writer) -> None:
        body = json.dumps({"n" * 100 + str(number): 1 for number in range(5000)}).encode()
        found = pointers(writer.send("POST", body=body))
        assert (len(found), found[:2]) == (100, ["/case_number", "/priority"])
        assert max(map(len, found)) <= 65

    @pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jso"])
    def test_another_type_is_refused(self, writer: Writer, media_type: str | None) -> None:
        given = {"Authorization": f"Token {writer.token}"} | ({"Content-Type": media_type} if media_type else {})
        for method, path in (("POST", ""), ("PUT", f"/{uuid4()}"), ("PATCH", f"/{uuid4()}")):
            response = writer.client.open(
                writer.organization.cases_path + path, method=method, data=b"{}", headers=given
            )
            assert_problem(response, 415, "unsupported_media_type")

    def test_a_merge_patch_is_for_patch(self, writer: Writer) -> None:
        case = writer.create()
        merge = "application/merge-patch+json"
        assert writer.send("PATCH", case["id"], b'{"subject": "new"}', Content_Type=merge).status_code == 200
        for method, case_id in (("POST", None), ("PUT", case["id"])):
            assert_problem(writer.send(method, case_id, b"{}", Content_Type=merge), 415, "unsupported_media_type")
        charset = writer.send("PATCH", case["id"], b"{}", Content_Type="application/json; charset=utf-8")
        assert charset.status_code == 200

    def test_a_compressed_body_is_refused(self, writer: Writer) -> None:
        response = writer.send("POST", body=b"x", Content_Encoding="gzip")
        assert_problem(response, 415, "unsupported_media_type")

    def test_a_body_of_more_than_a_mebibyte_is_refused(self, writer: Writer) -> None:
        start = b'{"case_number": "large", "priority": 1}'
        assert writer.send("POST", body=start + b" " * (MAXIMUM - len(start))).status_code == 201
        assert_problem(writer.send("POST", body=b" " * (MAXIMUM + 1)), 413, "body_too_large")


class TestReplacing:
    def test_an_id_of_the_callers_own_is_made_and_then_replaced(self, writer: Writer) -> None:
        case_id = str(uuid4())
        body = {"case_number": "P-1", "priority": 2, "subject": "first"}
        made = writer.send("PUT", case_id.upper(), body)
        assert (made.status_code, made.get_json()["id"]) == (201, case_id)
        replaced = writer.send("PUT", case_id, {"case_number": "P-2", "priority": 3})
        assert (replaced.status_code, replaced.get_json()["subject"]) == (200, None)
        assert replaced.get_json()["created_at"] == made.get_json()["created_at"]

    def test_repeating_it_changes_nothing(self, writer: Writer) -> None:
        case_id = uuid4()
        body = {"case_number": "P-3", "priority": 2, "owner_id": str(writer.organization.user_id)}
        first = writer.send("PUT", case_id, body)
        before = version(writer, case_id)
        again = writer.send("PUT", case_id, body)
        assert (again.status_code, again.data) == (200, first.data)
        assert version(writer, case_id) == before

    def test_what_is_left_out_becomes_null_or_its_default(self, writer: Writer) -> None:
        organization = writer.organization
        case = writer.create(
            contact_id=str(organization.visitor().contact_ids[0]),
            owner_id=str(organization.user()),
            subject="s",
            description="d",
            latest_messaging_channel="email",
            updated_by_user_id=str(organization.user()),
            case_funnel_stage_id=str(organization.stage()),
            channel_priority=1,
            is_closed=True,
        )
        replaced = writer.send("PUT", case["id"], {"case_number": "bare", "priority": 1}).get_json()
        kept = ("created_by_user_id", "created_by_user", "updated_by_user_id", "updated_by_user")
        assert {name for name, value in replaced.items() if value is None} == {
            "contact_id", "contact", "owner_id", "owner", "subject", "description", "latest_messaging_channel",
            "closed_at", "case_funnel_stage", "case_funnel_stage_id", "channel_priority",
        }  # fmt: skip
        assert (replaced["status"], replaced["is_closed"]) == ("Open", False)
        assert all(replaced[name] for name in kept)
        assert replaced["updated_by_user_id"] == str(organization.user_id)

    def test_who_made_a_case_stays(self, writer: Writer) -> None:
        case = writer.create()
        other = str(writer.organization.user())
        for author in (other, NOBODY, None):
            body = {"case_number": case["case_number"], "priority": 3, "created_by_user_id": author}
            assert writer.send("PUT", case["id"], body).get_json()["created_by_user_id"] == case["created_by_user_id"]
            assert writer.patch(case, created_by_user_id=author) == case


class TestChanging:
    def test_what_is_not_named_stays(self, writer: Writer) -> None:
        case = writer.create(subject="s", description="d", priority=4, channel_priority=2)
        changed = writer.patch(case, subject=None, priority=5)
        assert {name for name in case if case[name] != changed[name]} == {
            "subject", "priority", "priority_label", "updated_at",
        }  # fmt: skip
        assert changed["updated_at"] > case["updated_at"]

    def test_none_of_the_attributes_has_to_be_named(self, writer: Writer) -> None:
        given = everything(writer.organization)
        case = writer.create(**given)
        # Each of them changes alone, but for what follows from it.
        fresh: dict[str, Any] = everything(writer.organization) | {"is_closed": False}
        fresh |= {"priority": 5, "subject": "t", "description": "e"}
        fresh |= {"latest_messaging_channel": "email", "channel_priority": 1}
        follows = {"priority": {"priority_label"}, "is_closed": {"status", "closed_at"}}
        for name in given.keys() - {"created_by_user_id", "updated_by_user_id"}:
            changed = writer.patch(case, **{name: fresh[name]})
            shown = {name, name.removesuffix("_id")} & case.keys()
            assert different(case, changed) == shown | follows.get(name, set()) | {"updated_at"}
            case = changed

    def test_a_change_that_changes_nothing_writes_nothing(self, writer: Writer) -> None:
        owner = str(writer.organization.user_id)
        case = writer.create(subject="s", owner_id=owner)
        before = version(writer, case["id"])
        for body in (
            {},
            {"subject": "s"},
            {"owner": {"id": owner.upper()}},
            {"is_closed": False},
            {"status": "Closed"},
        ):
            assert writer.patch(case, **body) == case
        assert version(writer, case["id"]) == before

    def test_who_changes_it_is_its_editor_unless_the_body_names_one(self, writer: Writer) -> None:
        nobody = writer.create(updated_by_user_id=None)
        assert writer.patch(nobody, priority=1)["updated_by_user_id"] == str(writer.organization.user_id)
        editor = str(writer.organization.user())
        assert writer.patch(nobody, priority=2, updated_by_user_id=editor)["updated_by_user_id"] == editor

    def test_its_time_grows_with_every_change_whatever_time_was_loaded(self, writer: Writer) -> None:
        future = datetime.now(UTC) + timedelta(days=365)
        case_id = writer.organization.case(None, updated_at=future)
        times = [stored(writer, case_id, "updated_at")]
        for number in range(3):
            assert writer.send("PATCH", case_id, {"subject": str(number)}).status_code == 200
            times.append(stored(writer, case_id, "updated_at"))
        steps = [after - before for before, after in pairwise(times)]
        assert steps == [timedelta(milliseconds=1)] * 3

    def test_the_last_time_that_there_is_does_not_overflow(self, writer: Writer) -> None:
        last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
        case_id = writer.organization.case(None, updated_at=last)
        assert writer.send("PATCH", case_id, {"subject": "x"}).status_code == 200
        assert stored(writer, case_id, "updated_at") == last

    @pytest.mark.parametrize("status", ["Open", "In Progress", "Pending"])
    def test_closing_sets_the_time_and_opening_takes_it_away(self, writer: Writer, status: str) -> None:
        case_id = writer.organization.case(None, status=status)
        closed = writer.send("PATCH", case_id, {"is_closed": True}).get_json()
        assert (closed["status"], closed["is_closed"], closed["closed_at"]) == ("Closed", True, closed["updated_at"])
        again = writer.send("PATCH", case_id, {"is_closed": True, "subject": "x"}).get_json()
        assert again["closed_at"] == closed["closed_at"] < again["updated_at"]
        opened = writer.send("PATCH", case_id, {"is_closed": False}).get_json()
        assert (opened["status"], opened["is_closed"], opened["closed_at"]) == ("Open", False, None)

    def test_a_case_with_an_owner_opens_in_progress(self, writer: Writer) -> None:
        owner = {"id": str(writer.organization.user_id)}
        case = writer.create(is_closed=True)
        assert writer.patch(case, is_closed=False, owner=owner)["status"] == "In Progress"
        closed = writer.create(is_closed=True, owner=owner)
        assert writer.patch(closed, is_closed=False, owner=None)["status"] == "Open"

    @pytest.mark.parametrize("status", ["Open", "In Progress", "Pending"])
    def test_a_case_that_is_open_keeps_its_status(self, writer: Writer, status: str) -> None:
        case_id = writer.organization.case(None, status=status)
        body = {"is_closed": False, "owner_id": str(writer.organization.user_id)}
        assert writer.send("PATCH", case_id, body).get_json()["status"] == status

    def test_the_time_of_closing_keeps_its_microseconds(self, writer: Writer) -> None:
        case_id = writer.organization.case(None, status="Closed")
        assert writer.send("PATCH", case_id, {"subject": "x"}).status_code == 200
        assert stored(writer, case_id, "closed_at") == LONG_AGO


class TestRemoving:
    def test_a_case_is_gone_and_then_not_found(self, writer: Writer) -> None:
        case = writer.create()
        gone = writer.send("DELETE", case["id"])
        assert (gone.status_code, gone.data) == (204, b"")
        for method, body in (("DELETE", None), ("GET", None), ("PATCH", {})):
            assert_problem(writer.send(method, case["id"], body), 404, "case_not_found")

    @pytest.mark.parametrize("case_id", ["x", "summary", NOBODY.replace("-", ""), NOBODY])
    def test_what_is_no_case_is_not_found(self, writer: Writer, case_id: str) -> None:
        calls: list[tuple[str, Any]] = [("GET", None), ("PATCH", {}), ("DELETE", None)]
        if case_id != NOBODY:
            calls.append(("PUT", {"case_number": "x", "priority": 1}))
        for method, body in calls:
            assert_problem(writer.send(method, case_id, body), 404, "case_not_found")

    def test_another_organizations_case_is_not_found(self, writer: Writer, other: Organization) -> None:
        before = contents(other.connection, other)
        case_id = other.case(None)
        for method, body in (("GET", None), ("PATCH", {"subject": "x"}), ("DELETE", None)):
            assert_problem(writer.send(method, case_id, body), 404, "case_not_found")
        made = writer.send("PUT", case_id, {"case_number": "x", "priority": 1})
        assert made.status_code == 201, "an id is unique within its organization"
        writer.send("DELETE", case_id)
        other.connection.execute("delete from cases where organization_id = %s and id = %s", [other.id, case_id])
        assert contents(other.connection, other) == before


class TestOrder:
    @pytest.mark.parametrize(("method", "path"), [("POST", ""), ("PUT", "/x"), ("PATCH", "/x"), ("DELETE", "/x")])
    def test_who_may_not_write_is_told_first(
        self, client: FlaskClient, organization: Organization, method: str, path: str
    ) -> None:
        for scopes in (["cases:read"], ["visitors:read", "visitors:write"]):
            headers = {"Authorization": f"Token {organization.token_with(*scopes)}"}
            answer = client.open(f"{organization.cases_path}{path}?x=1", method=method, headers=headers, data=b"x")
            assert "cases:write" in assert_problem(answer, 403, "scope_missing")["detail"]

    def test_reading_needs_a_scope_and_writing_includes_it(
        self, client: FlaskClient, organization: Organization
    ) -> None:
        case_id = organization.case(None)
        for scope, status in (("cases:read", 200), ("cases:write", 200), ("visitors:read", 403)):
            answer = Writer(client, organization, scope).get(case_id)
            assert answer.status_code == status
        assert "cases:read" in assert_problem(answer, 403, "scope_missing")["detail"]

    @pytest.mark.parametrize(("method", "path"), [("POST", ""), ("PUT", "/x"), ("PATCH", "/x"), ("DELETE", "/x")])
    def test_a_service_that_only_reads_says_so(
        self, make_client: Callable[..., FlaskClient], organization: Organization, method: str, path: str
    ) -> None:
        client = make_client(write_database_url=None)
        headers = {"Authorization": f"Token {organization.token_with('cases:write')}"}
        answer = client.open(f"{organization.cases_path}{path}?x=1", method=method, headers=headers, data=b"x")
        assert_problem(answer, 403, "read_only_deployment")
        assert Writer(client, organization).get(organization.case(None)).status_code == 200

    def test_the_first_check_that_fails_decides(self, writer: Writer) -> None:
        writer.create(case_number="taken")
        case = writer.create()
        stale = {"If_Match": '"x"'}
        wrong = b"x" * (MAXIMUM + 1)
        path = f"{case['id']}?x=1"
        assert_problem(writer.send("PATCH", path, wrong, Content_Type="text/plain"), 400, "invalid_parameter")
        assert_problem(
            writer.send("PATCH", case["id"], wrong, Content_Type="text/plain"), 415, "unsupported_media_type"
        )
        assert_problem(writer.send("PATCH", case["id"], wrong), 413, "body_too_large")
        body = {"case_number": "taken", "owner_id": NOBODY}
        assert_problem(writer.send("PATCH", uuid4(), body, **stale), 400, "invalid_body")
        body = {"case_number": "taken"}
        assert_problem(writer.send("PATCH", uuid4(), body, **stale), 404, "case_not_found")
        assert_problem(writer.send("PATCH", case["id"], body, **stale), 412, "precondition_failed")
        assert_problem(writer.send("PATCH", case["id"], body), 409, "case_number_taken")

    def test_the_document_lists_the_routes(self, app: Application) -> None:
        listed = [line.split() for line in block("docs/api.md", "text", "DELETE").splitlines()]
        routes = {
            (method, re.sub(r"<uuid:", "<", rule.rule))
            for rule in app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD"}
            if rule.endpoint.startswith("organization_cases.")
        }
        assert {(method, path) for method, path in listed} == routes

    def test_other_methods_are_not_allowed(self, writer: Writer) -> None:
        answer = writer.send("POST", uuid4(), {})
        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "DELETE, GET, HEAD, PATCH, PUT"

    def test_head_and_a_trailing_slash_work(self, writer: Writer) -> None:
        case = writer.create()
        shown = writer.get(f"{case['id']}/")
        head = writer.send("HEAD", case["id"])
        assert (head.status_code, head.data, head.headers["ETag"]) == (200, b"", shown.headers["ETag"])

    def test_fields_choose_what_is_shown(self, writer: Writer) -> None:
        case = writer.create()
        shown = writer.get(f"{case['id']}?fields=owner,case_number,id").get_json()
        assert list(shown.items()) == [(name, case[name]) for name in ("id", "case_number", "owner")]


def version(writer: Writer, case_id: object) -> Any:
    """Return what differs after each write of a row, whatever it writes."""
    return stored(writer, case_id, "xmin::text || ' ' || ctid::text")


def stored(writer: Writer, case_id: object, expression: str) -> Any:
    row = writer.organization.connection.execute(
        f"select {expression} from cases where organization_id = %s and id = %s",
        [writer.organization.id, case_id],
    ).fetchone()
    assert row is not None
    return row[0]
