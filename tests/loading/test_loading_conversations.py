"""Lines of activities, messages and events: what is stored, what is derived, and what is refused."""

from collections.abc import Iterator
from typing import Any, Literal
from uuid import uuid4

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.load import load
from cases_service.loading.outcome import LoadError, LoadOptions, LoadSummary
from cases_service.loading.statements import STATEMENTS
from tests.loading.test_imports import (
    JOINS,
    NEEDED,
    NO_PARENT,
    buffers,
    create_staging,
    index_staging,
    load_with,
    plan_of,
    scanned,
    wrong,
)
from tests.loading.test_loading import (
    LATER,
    TIME,
    Company,
    Fields,
    assert_stored,
    company,
    file_of,
    removal,
    removed,
    written,
)

__all__ = ["company"]

Mode = Literal["all", "each"]
MODES: tuple[Mode, ...] = ("all", "each")
SNAPSHOT = LoadOptions(maximum_removals=0.5)


@pytest.fixture
def known(company: Company) -> Company:
    company.load(company.organization())
    return company


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    mode: Mode = request.param
    return mode


def take(company: Company, mode: Mode, *lines: Fields) -> LoadSummary:
    """Load lines of which none is wrong."""
    summary = load_with(company, LoadOptions(mode=mode), *lines)
    assert summary.errors == []
    return summary


def refused(company: Company, mode: Mode, *lines: Fields) -> tuple[int | None, str | None, str]:
    """Return line, field and reason of the only wrong one among lines."""
    if mode == "all":
        before = company.snapshot()
        error = company.error(file_of(*lines))
        assert company.snapshot() == before
        return error.line, error.field, error.reason
    (found,) = wrong(load_with(company, LoadOptions(mode="each"), *lines))
    return found


def conversation(company: Company, messages: int = 3, **case: Any) -> list[Fields]:
    """Return a case with an activity of some messages."""
    made = company.case(**case)
    activity = company.activity(case_id=made["id"])
    return [made, activity, *(company.message(activity_id=activity["id"], text=str(n)) for n in range(messages))]


def counts(company: Company, activity: Fields) -> tuple[int, int]:
    row = company.rows("activities")[activity["id"]]
    return row["message_count"], row["private_message_count"]


def assert_counted(company: Company) -> None:
    """Check that each activity says how many messages it has, and that each message is in the case of its activity."""
    wrongly = company.connection.execute(
        "select a.id from activities a left join messages m using (organization_id)"
        " where a.organization_id = %s and m.activity_id = a.id"
        " group by a.organization_id, a.id"
        " having (message_count, private_message_count) <> (count(*) filter (where not m.is_private),"
        " count(*) filter (where m.is_private)) or bool_or(m.case_id <> a.case_id)"
        " union all select a.id from activities a where a.organization_id = %s"
        " and message_count + private_message_count > 0"
        " and not exists (select from messages m where m.organization_id = a.organization_id and m.activity_id = a.id)",
        [company.id, company.id],
    ).fetchall()
    assert wrongly == []


class TestRows:
    def test_they_are_stored_field_by_field(self, known: Company, mode: Mode) -> None:
        user, case = known.user(), known.case()
        activity = known.activity(case_id=case["id"], channel="telephony", updated_at=LATER, ended_at=LATER)
        message = known.message(
            activity_id=activity["id"], sender_user_id=user["id"], text="Good day", read_at=LATER, is_private=True
        )
        take(known, mode, message, activity, case, user)
        assert_stored(known, "activities", activity)
        assert_stored(known, "messages", message)
        assert str(known.rows("messages")[message["id"]]["case_id"]) == case["id"]

    def test_the_same_lines_again_change_nothing(self, known: Company, mode: Mode) -> None:
        lines = conversation(known)
        assert written(take(known, mode, *lines)) == {"case": 1, "activity": 1, "message": 3}
        before = known.snapshot()
        summary = take(known, mode, *lines)
        assert (written(summary), summary.unchanged) == ({}, 5)
        assert known.snapshot() == before

    def test_the_time_of_an_activity_that_is_left_out_is_that_of_loading_and_stays(
        self, known: Company, mode: Mode
    ) -> None:
        case, activity, *_ = conversation(known)
        take(known, mode, case, activity)
        first = known.rows("activities")[activity["id"]]
        assert first["updated_at"] > first["created_at"]
        take(known, mode, {**activity, "ended_at": LATER})
        second = known.rows("activities")[activity["id"]]
        assert second["updated_at"] == first["updated_at"]
        assert second["ended_at"] is not None

    def test_what_is_left_out_stays_where_that_is_asked_for(self, known: Company, mode: Mode) -> None:
        case, activity, message = conversation(known, 1)
        user = known.user()
        take(known, mode, case, user, activity | {"ended_at": LATER}, message | {"read_at": LATER})
        options = LoadOptions(mode=mode, keeps_left_out=True)
        load_with(known, options, activity, message | {"sender_user_id": user["id"]}, message | {"text": "new"})
        (stored,) = known.rows("messages").values()
        assert (stored["text"], str(stored["sender_user_id"]), stored["read_at"] is None) == ("new", user["id"], False)
        assert known.rows("activities")[activity["id"]]["ended_at"] is not None
        assert load_with(known, options, message | {"sender_type": "system", "text": "x"}).error_count == 0
        assert known.rows("messages")[message["id"]]["sender_user_id"] is None

    def test_they_are_found_again_by_own_ids(self, known: Company, mode: Mode) -> None:
        lines = [
            known.case(id="7"),
            known.user(id="7"),
            known.activity(id="7", case_id="7"),
            known.message(id="7", activity_id="7", sender_user_id="7"),
        ]
        take(known, mode, *lines)
        assert written(take(known, mode, *lines)) == {}
        assert removed(take(known, mode, *map(removal, lines[2:]))) == {"activity": 1, "message": 1}

    @pytest.mark.parametrize("if_newer", [False, True])
    def test_of_several_lines_of_a_message_the_last_one_counts(self, known: Company, if_newer: bool) -> None:
        lines = conversation(known, 1)
        options = LoadOptions(if_newer=if_newer)
        load_with(known, options, *lines, lines[2] | {"text": "last", "created_at": TIME})
        assert known.rows("messages")[lines[2]["id"]]["text"] == "last"
        assert load_with(known, options, *lines).stale == (1 if if_newer else 0)
        assert known.rows("messages")[lines[2]["id"]]["text"] == "0"


class TestReferences:
    @pytest.mark.parametrize(
        ("kind", "field"), [("activity", "case_id"), ("message", "activity_id"), ("message", "sender_user_id")]
    )
    def test_a_row_that_does_not_exist_is_named(self, known: Company, mode: Mode, kind: str, field: str) -> None:
        case, activity, message = conversation(known, 1)
        take(known, mode, case, activity)
        line = (activity if kind == "activity" else message) | {"id": str(uuid4()), field: str(uuid4())}
        assert refused(known, mode, message, line) == (2, field, NO_PARENT)

    def test_a_message_of_a_wrong_activity_is_wrong_as_well(self, known: Company) -> None:
        case, activity, message = conversation(known, 1)
        summary = load_with(known, LoadOptions(mode="each"), message, activity | {"channel": "fax"}, case)
        assert [(line, field) for line, field, _ in wrong(summary)] == [(1, "activity_id"), (2, "channel")]

    def test_a_message_of_a_wrong_line_of_a_stored_activity_is_in_its_case(self, known: Company) -> None:
        lines, other = conversation(known, 0), known.case()
        known.load(*lines, other)
        moved = lines[1] | {"case_id": str(uuid4())}
        message = known.message(activity_id=lines[1]["id"])
        assert wrong(load_with(known, LoadOptions(mode="each"), moved, message)) == [(1, "case_id", NO_PARENT)]
        assert_counted(known)
        assert str(known.rows("messages")[message["id"]]["case_id"]) == lines[0]["id"]

    @pytest.mark.parametrize("kind", ["activity", "message"])
    def test_an_organization_that_does_not_exist_is_named(self, known: Company, mode: Mode, kind: str) -> None:
        case, activity, message = conversation(known.another(), 1)
        line = {"activity": activity, "message": message}[kind]
        assert refused(known, mode, line) == (1, "organization_id", NO_PARENT)
        assert case["organization_id"] != known.id

    def test_another_organizations_activity_is_none(self, known: Company, mode: Mode) -> None:
        twin = known.another()
        lines = conversation(twin, 0)
        known.load(twin.organization(), *lines)
        assert refused(known, mode, known.message(activity_id=lines[1]["id"]))[1:] == ("activity_id", NO_PARENT)


class TestCounts:
    def test_notes_are_counted_by_themselves(self, known: Company, mode: Mode) -> None:
        lines = conversation(known, 3)
        take(known, mode, *lines, known.message(activity_id=lines[1]["id"], is_private=True))
        assert counts(known, lines[1]) == (3, 1)

    def test_they_follow_what_changes(self, known: Company, mode: Mode) -> None:
        case, activity, *messages = conversation(known, 4)
        other = known.activity(case_id=case["id"])
        take(known, mode, case, activity, other, *messages)
        take(
            known,
            mode,
            messages[0] | {"is_private": True},
            messages[1] | {"activity_id": other["id"]},
            removal(messages[2]),
            known.message(activity_id=other["id"], is_private=True),
        )
        assert (counts(known, activity), counts(known, other)) == ((1, 1), (1, 1))
        assert_counted(known)

    def test_a_line_of_an_activity_leaves_them_alone(self, known: Company, mode: Mode) -> None:
        case, activity, *messages = conversation(known, 2)
        take(known, mode, case, activity, *messages)
        take(known, mode, activity | {"ended_at": LATER})
        assert counts(known, activity) == (2, 0)

    def test_messages_of_a_wrong_line_are_not_counted(self, known: Company) -> None:
        case, activity, *messages = conversation(known, 2)
        wrong_one = messages[1] | {"sender_user_id": str(uuid4())}
        load_with(known, LoadOptions(mode="each"), case, activity, messages[0], wrong_one)
        assert counts(known, activity) == (1, 0)

    def test_a_second_try_counts_once(self, known: Company) -> None:
        """A number that only a removal frees, which fails: all is written anew without what was in the way."""
        old = known.visitor(external_id="1")
        known.load(old, known.contact(visitor_id=old["id"]))
        lines = conversation(known, 2)
        known.load(*lines[:3])
        summary = load_with(
            known, LoadOptions(mode="each"), known.visitor(external_id="1"), removal(old), *lines, removal(lines[2])
        )
        assert [field for _, field, _ in wrong(summary)] == ["external_id", "deleted"]
        assert counts(known, lines[1]) == (1, 0)
        assert_counted(known)


class TestMoving:
    def test_an_activity_takes_its_messages_to_another_case(self, known: Company, mode: Mode) -> None:
        (_, activity, *messages), other = conversation(known), known.case()
        known.load(*conversation(known), other)
        known.load(known.case(id=activity["case_id"]), activity, *messages)
        assert written(take(known, mode, activity | {"case_id": other["id"]})) == {"activity": 1}
        assert {str(known.rows("messages")[line["id"]]["case_id"]) for line in messages} == {other["id"]}
        assert_counted(known)

    def test_two_activities_change_places(self, known: Company, mode: Mode) -> None:
        one, two = conversation(known), conversation(known)
        known.load(*one, *two)
        late = known.message(activity_id=one[1]["id"])
        take(known, mode, late, one[1] | {"case_id": two[0]["id"]}, two[1] | {"case_id": one[0]["id"]})
        assert str(known.rows("messages")[late["id"]]["case_id"]) == two[0]["id"]
        assert_counted(known)

    def test_a_message_moves_to_a_case_that_is_new(self, known: Company, mode: Mode) -> None:
        one, two = conversation(known), conversation(known, 0)
        known.load(*one)
        take(known, mode, one[2] | {"activity_id": two[1]["id"]}, *two)
        assert str(known.rows("messages")[one[2]["id"]]["case_id"]) == two[0]["id"]
        assert (counts(known, one[1]), counts(known, two[1])) == ((2, 0), (1, 0))

    def test_what_leaves_a_case_stays_where_that_is_removed(self, known: Company, mode: Mode) -> None:
        one, two = conversation(known, 2), known.case()
        known.load(*one, two)
        late = known.message(activity_id=one[1]["id"])
        take(known, mode, removal(one[0]), one[1] | {"case_id": two["id"]}, late, removal(one[2]))
        assert known.rows("messages").keys() == {one[3]["id"], late["id"]}
        assert_counted(known)


class TestRemovals:
    def test_an_activity_that_has_messages_is_needed(self, known: Company, mode: Mode) -> None:
        case, activity, *messages = conversation(known)
        known.load(case, activity, *messages)
        assert refused(known, mode, removal(messages[0]), removal(activity)) == (2, "deleted", NEEDED)
        assert activity["id"] in known.rows("activities")

    def test_an_activity_goes_with_its_messages(self, known: Company, mode: Mode) -> None:
        case, activity, *messages = conversation(known)
        known.load(case, activity, *messages)
        summary = take(known, mode, removal(activity), *map(removal, messages))
        assert removed(summary) == {"activity": 1, "message": 3}
        assert (known.rows("activities"), list(known.rows("cases"))) == ({}, [case["id"]])

    def test_a_case_takes_along_what_is_in_it(self, known: Company, mode: Mode) -> None:
        lines, kept = conversation(known), conversation(known)
        known.load(*lines, *kept)
        summary = take(known, mode, removal(lines[0]))
        assert removed(summary) == {"case": 1}
        assert known.rows("activities").keys() == {kept[1]["id"]}
        assert len(known.rows("messages")) == 3

    def test_it_takes_along_what_lines_say_of_that(self, known: Company, mode: Mode) -> None:
        lines = conversation(known)
        known.load(*lines)
        new = known.activity(case_id=lines[0]["id"])
        about = [new, known.message(activity_id=new["id"]), known.message(activity_id=lines[1]["id"]), lines[2]]
        summary = take(known, mode, removal(lines[0]), *about, removal(lines[1]), removal(lines[3]))
        assert (written(summary), removed(summary), summary.unchanged) == ({}, {"case": 1}, 6)
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})

    def test_a_case_that_is_given_again_keeps_them(self, known: Company, mode: Mode) -> None:
        lines = conversation(known)
        known.load(*lines)
        take(known, mode, removal(lines[0]), lines[0] | {"subject": "again"})
        assert len(known.rows("messages")) == 3

    def test_a_removal_that_is_too_old_takes_nothing_along(self, known: Company, mode: Mode) -> None:
        lines = conversation(known, updated_at=LATER)
        known.load(*lines)
        options = LoadOptions(mode=mode, if_newer=True)
        late = known.message(activity_id=lines[1]["id"])
        assert load_with(known, options, removal(lines[0]) | {"updated_at": TIME}, late).stale == 1
        assert counts(known, lines[1]) == (4, 0)


class TestMovingIntoARemovedCase:
    @pytest.fixture(params=["stored", "new", "unknown"])
    def leaving(self, request: pytest.FixtureRequest, known: Company) -> list[Fields]:
        """Return lines that remove a case, which is stored, made by the same load, or neither."""
        case = known.case()
        if request.param == "stored":
            known.load(case)
        return [case, removal(case)] if request.param == "new" else [removal(case)]

    def test_an_activity_goes_with_its_messages(self, known: Company, mode: Mode, leaving: list[Fields]) -> None:
        lines, kept = conversation(known), conversation(known)
        known.load(*lines, *kept)
        moved = lines[1] | {"case_id": leaving[0]["id"]}
        late = known.message(activity_id=lines[1]["id"])
        summary = take(known, mode, moved, late, lines[3], removal(lines[4]), *leaving)
        assert known.rows("activities").keys() == {kept[1]["id"]}
        assert known.rows("messages").keys() == {line["id"] for line in kept[2:]}
        assert known.rows("cases").keys() == {lines[0]["id"], kept[0]["id"]}
        assert removed(summary) in ({"activity": 1}, {"activity": 1, "case": 1})
        assert summary.lines == sum(removed(summary).values()) + summary.unchanged
        assert written(summary) == {}

    def test_what_leaves_the_activity_stays(self, known: Company, mode: Mode, leaving: list[Fields]) -> None:
        lines, kept = conversation(known), conversation(known, 0)
        known.load(*lines, *kept)
        moved = lines[1] | {"case_id": leaving[0]["id"]}
        take(known, mode, moved, lines[2] | {"activity_id": kept[1]["id"]}, *leaving)
        assert known.rows("messages").keys() == {lines[2]["id"]}
        assert counts(known, kept[1]) == (1, 0)
        assert_counted(known)

    @pytest.mark.parametrize("is_new", [True, False])
    def test_a_message_leaves_its_activity(
        self, known: Company, mode: Mode, leaving: list[Fields], is_new: bool
    ) -> None:
        """It moves into an activity that is new there, or that is moved there itself."""
        lines, other = conversation(known, 2), conversation(known, 1)
        note = known.message(activity_id=lines[1]["id"], is_private=True)
        known.load(*lines, note, *other)
        gone = (known.activity() if is_new else other[1]) | {"case_id": leaving[0]["id"]}
        summary = take(known, mode, *(line | {"activity_id": gone["id"]} for line in (lines[2], note)), gone, *leaving)
        assert known.rows("messages").keys() == {lines[3]["id"], *([other[2]["id"]] if is_new else [])}
        assert counts(known, lines[1]) == (1, 0)
        assert_counted(known)
        assert removed(summary)["message"] == 2
        assert summary.lines == sum(removed(summary).values()) + summary.unchanged

    def test_a_message_leaves_an_activity_that_leaves_a_removed_case(
        self, known: Company, mode: Mode, leaving: list[Fields]
    ) -> None:
        one, two = conversation(known, 2), known.case()
        known.load(*one, two)
        gone = known.activity(case_id=leaving[0]["id"])
        saved = one[1] | {"case_id": two["id"]}
        take(known, mode, one[2] | {"activity_id": gone["id"]}, gone, saved, removal(one[0]), *leaving)
        assert known.rows("messages").keys() == {one[3]["id"]}
        assert counts(known, one[1]) == (1, 0)
        assert_counted(known)

    def test_an_activity_of_another_removed_case_goes_with_that(
        self, known: Company, mode: Mode, leaving: list[Fields]
    ) -> None:
        lines = conversation(known)
        known.load(*lines)
        summary = take(known, mode, lines[1] | {"case_id": leaving[0]["id"]}, lines[2], removal(lines[0]), *leaving)
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})
        assert "activity" not in removed(summary)

    def test_an_activity_whose_only_message_goes_there_can_be_removed(
        self, known: Company, mode: Mode, leaving: list[Fields]
    ) -> None:
        lines = conversation(known, 1)
        known.load(*lines)
        gone = known.activity(case_id=leaving[0]["id"])
        take(known, mode, lines[2] | {"activity_id": gone["id"]}, gone, removal(lines[1]), *leaving)
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})

    def test_a_message_goes_into_a_removed_case_itself(self, known: Company, mode: Mode) -> None:
        lines, gone = conversation(known), conversation(known)
        known.load(*lines, *gone)
        take(known, mode, lines[2] | {"activity_id": gone[1]["id"]}, removal(gone[0]))
        assert known.rows("messages").keys() == {line["id"] for line in lines[3:]}
        assert counts(known, lines[1]) == (2, 0)
        assert_counted(known)

    def test_a_removal_that_is_too_old_removes_nothing(self, known: Company, mode: Mode) -> None:
        lines, case = conversation(known), known.case(updated_at=LATER)
        known.load(*lines, case)
        options = LoadOptions(mode=mode, if_newer=True)
        moved = lines[1] | {"case_id": case["id"]}
        summary = load_with(known, options, moved, removal(case) | {"updated_at": TIME})
        assert (written(summary), removed(summary), summary.stale) == ({"activity": 1}, {}, 1)
        assert len(known.rows("messages")) == 3
        assert_counted(known)


class TestWrongMoves:
    """A wrong line of an activity leaves it where it is stored, and it goes with that case."""

    def lines(self, known: Company, messages: int) -> tuple[list[Fields], Fields]:
        stored = conversation(known, messages)
        known.load(*stored)
        return stored, stored[1] | {"case_id": str(uuid4())}

    def test_a_new_message_is_not_counted_as_written(self, known: Company) -> None:
        stored, moved = self.lines(known, 0)
        late = known.message(activity_id=stored[1]["id"])
        summary = load_with(known, LoadOptions(mode="each"), moved, late, removal(stored[0]))
        assert wrong(summary) == [(1, "case_id", NO_PARENT)]
        assert (written(summary), removed(summary), summary.unchanged) == ({}, {"case": 1}, 1)
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})

    def test_a_case_whose_line_is_wrong_is_none(self, known: Company) -> None:
        stored, moved = self.lines(known, 1)
        case = known.case(id=moved["case_id"], contact_id=str(uuid4()))
        late = known.message(activity_id=stored[1]["id"])
        summary = load_with(known, LoadOptions(mode="each"), case, moved, late, removal(stored[2]), removal(stored[0]))
        assert [line for line, *_ in wrong(summary)] == [1, 2]
        assert (written(summary), removed(summary), summary.unchanged) == ({}, {"case": 1}, 2)

    def test_a_message_from_elsewhere_is_removed(self, known: Company) -> None:
        stored, moved = self.lines(known, 0)
        other = conversation(known, 2)
        known.load(*other)
        joins = other[2] | {"activity_id": stored[1]["id"]}
        summary = load_with(known, LoadOptions(mode="each"), moved, joins, removal(stored[0]))
        assert (written(summary), removed(summary), summary.unchanged) == ({}, {"case": 1, "message": 1}, 0)
        assert known.rows("messages").keys() == {other[3]["id"]}
        assert counts(known, other[1]) == (1, 0)

    def test_a_wrong_message_of_an_activity_that_goes_goes_with_it(self, known: Company) -> None:
        stored, gone = conversation(known, 1), known.case()
        known.load(*stored)
        astray = stored[2] | {"activity_id": str(uuid4())}
        moved = stored[1] | {"case_id": gone["id"]}
        summary = load_with(known, LoadOptions(mode="each"), moved, astray, removal(gone))
        assert wrong(summary) == [(2, "activity_id", NO_PARENT)]
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})


class TestHiddenActivities:
    def is_hidden(self, company: Company, activity: Fields) -> bool:
        return bool(company.rows("activities")[activity["id"]]["is_private"])

    def test_a_new_one_of_notes_alone_is_hidden(self, known: Company, mode: Mode) -> None:
        case, activity, *_ = conversation(known, 0)
        notes = [known.message(activity_id=activity["id"], is_private=True) for _ in range(2)]
        take(known, mode, *notes, case, activity)
        assert self.is_hidden(known, activity)
        take(known, mode, *notes, activity | {"ended_at": LATER})
        assert self.is_hidden(known, activity)

    def test_a_message_that_is_wrong_does_not_show_it(self, known: Company) -> None:
        case = known.case()
        activity = known.activity(case_id=case["id"])
        note = known.message(activity_id=activity["id"], is_private=True)
        message = known.message(activity_id=activity["id"], sender_type="user", sender_user_id=str(uuid4()))
        summary = load_with(known, LoadOptions(mode="each"), case, activity, note, message)
        assert [field for _, field, _ in wrong(summary)] == ["sender_user_id"]
        assert self.is_hidden(known, activity)

    def test_one_without_messages_is_shown_and_stays_so(self, known: Company, mode: Mode) -> None:
        case, activity, *_ = conversation(known, 0)
        take(known, mode, case, activity)
        note = known.message(activity_id=activity["id"], is_private=True)
        take(known, mode, note)
        assert not self.is_hidden(known, activity)
        take(known, mode, note, activity | {"ended_at": LATER})
        assert not self.is_hidden(known, activity)

    def test_one_that_has_more_than_notes_is_shown(self, known: Company, mode: Mode) -> None:
        lines = conversation(known, 1)
        take(known, mode, known.message(activity_id=lines[1]["id"], is_private=True), *lines)
        assert not self.is_hidden(known, lines[1])

    @pytest.mark.parametrize("changes", [False, True])
    def test_it_is_shown_with_the_first_message_that_is_no_note(
        self, known: Company, mode: Mode, changes: bool
    ) -> None:
        case, activity, *_ = conversation(known, 0)
        note = known.message(activity_id=activity["id"], is_private=True)
        take(known, mode, case, activity, note)
        shown = note | {"is_private": False} if changes else known.message(activity_id=activity["id"])
        take(known, mode, shown)
        assert not self.is_hidden(known, activity)
        assert_counted(known)


class TestSnapshots:
    def snapshot(self, company: Company, *lines: Fields, **options: Any) -> LoadSummary:
        taken = LoadOptions(**{"maximum_removals": 0.5, **options})
        return load(company.connection, [file_of(*lines)], box=company.box, options=taken)

    def test_one_without_conversations_leaves_them_alone(self, known: Company) -> None:
        lines, gone = conversation(known), conversation(known)
        known.load(*lines, *gone)
        summary = self.snapshot(known, lines[0])
        assert removed(summary) == {"case": 1}
        assert (list(known.rows("activities")), len(known.rows("messages"))) == ([lines[1]["id"]], 3)

    def test_what_no_line_names_is_removed(self, known: Company) -> None:
        lines, more = conversation(known), known.activity()
        more |= {"case_id": lines[0]["id"]}
        known.load(*lines, more)
        summary = self.snapshot(known, *lines[:-1])
        assert (removed(summary), summary.unchanged) == ({"activity": 1, "message": 1}, 4)
        assert counts(known, lines[1]) == (2, 0)

    def test_a_case_that_no_line_names_takes_them_along(self, known: Company) -> None:
        lines, gone = conversation(known), conversation(known)
        known.load(*lines, *gone)
        summary = self.snapshot(known, *lines)
        assert (removed(summary), summary.unchanged) == ({"case": 1}, 5)
        assert len(known.rows("messages")) == 3
        assert_counted(known)

    def test_an_activity_that_is_moved_into_it_goes_as_well(self, known: Company) -> None:
        lines, gone = conversation(known), conversation(known)
        known.load(*lines, *gone)
        summary = self.snapshot(known, lines[0], lines[1] | {"case_id": gone[0]["id"]}, maximum_removals=1)
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})
        assert (removed(summary), written(summary), summary.unchanged) == ({"activity": 1, "case": 1}, {}, 1)
        assert known.rows("cases").keys() == {lines[0]["id"]}

    def test_an_activity_that_is_moved_into_it_takes_along_messages_that_no_line_names(self, known: Company) -> None:
        lines, gone = conversation(known), conversation(known)
        known.load(*lines, *gone)
        moved = lines[1] | {"case_id": gone[0]["id"]}
        summary = self.snapshot(known, lines[0], moved, lines[2], maximum_removals=1)
        assert (known.rows("activities"), known.rows("messages")) == ({}, {})
        assert (removed(summary), written(summary), summary.unchanged) == ({"activity": 1, "case": 1}, {}, 2)

    def test_messages_stay_where_the_files_have_activities_alone(self, known: Company) -> None:
        lines = conversation(known)
        known.load(*lines)
        assert removed(self.snapshot(known, *lines[:2])) == {}

    def test_another_organizations_stay_where_the_files_have_only_its_cases(self, known: Company) -> None:
        twin = known.another()
        lines, others = conversation(known), conversation(twin)
        known.load(twin.organization(), *lines, *others)
        summary = self.snapshot(known, *lines[:-1], others[0])
        assert removed(summary) == {"message": 1}
        assert len(twin.rows("messages")) == 3

    def test_more_than_the_share_that_may_go_is_refused(self, known: Company) -> None:
        lines = conversation(known)
        known.load(*lines)
        with pytest.raises(LoadError, match="the files name all but 2 of the 3 messages"):
            self.snapshot(known, *lines[:-2])
        assert len(known.rows("messages")) == 3

    def test_an_activity_whose_messages_stay_is_an_error(self, known: Company) -> None:
        lines, kept = conversation(known), known.activity()
        kept |= {"case_id": lines[0]["id"]}
        known.load(*lines, kept)
        with pytest.raises(LoadError, match="rows refer to others that no line names"):
            self.snapshot(known, lines[0], kept)

    @pytest.mark.parametrize(("if_newer", "stays"), [(True, True), (False, False)])
    def test_what_was_said_after_the_files_stays_where_the_newer_counts(
        self, known: Company, if_newer: bool, stays: bool
    ) -> None:
        lines = conversation(known)
        known.load(*lines, late := known.message(activity_id=lines[1]["id"], created_at=LATER))
        self.snapshot(known, *lines, if_newer=if_newer)
        assert (late["id"] in known.rows("messages")) is stays


class TestEvents:
    def last(self, company: Company) -> tuple[int, int] | None:
        row = company.connection.execute(
            "select last_position, pruned_position from event_positions where organization_id = %s", [company.id]
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def test_they_are_stored_at_their_positions(self, known: Company, mode: Mode) -> None:
        read = known.event(position=3)
        said = known.event(position=7, event_type="message_created", message_id=str(uuid4()), external_id="\u00e9")
        take(known, mode, said, read)
        rows = known.rows("events")
        assert [rows[key]["type"] for key in ("3", "7")] == ["case_read", "message_created"]
        for line in (read, said):
            stored = rows[str(line["position"])]
            assert {name: str(stored[name]) for name in ("external_id", "case_id", "case_number")} == {
                name: line[name] for name in ("external_id", "case_id", "case_number")
            }
        assert str(rows["7"]["message_id"]) == said["message_id"]
        assert self.last(known) == (7, 0)

    def test_the_same_lines_again_change_nothing(self, known: Company, mode: Mode) -> None:
        lines = [known.event(position=number) for number in (1, 2)]
        take(known, mode, *lines)
        before = known.rows("events")
        summary = take(known, mode, *lines)
        assert (written(summary), summary.unchanged, known.rows("events")) == ({}, 2, before)

    @pytest.mark.parametrize(
        "other",
        [
            {"event_type": "case_closed"},
            {"created_at": LATER},
            {"external_id": "eve"},
            {"case_id": str(uuid4())},
            {"case_number": "2"},
            {"event_type": "message_created", "message_id": str(uuid4())},
        ],
    )
    def test_a_position_that_another_event_has_is_named(self, known: Company, mode: Mode, other: Fields) -> None:
        line = known.event(position=1)
        known.load(line)
        reason = "another event of the organization has this position"
        assert refused(known, mode, line, line | other)[1:] == ("position", reason)
        assert refused(known, mode, known.event(position=2), line | other) == (2, "position", reason)

    def test_where_they_end_never_goes_back(self, known: Company, mode: Mode) -> None:
        known.connection.execute("insert into event_positions values (%s, 9, 0)", [known.id])
        take(known, mode, known.event(position=4))
        assert self.last(known) == (9, 0)
        take(known, mode, known.event(position=12))
        assert self.last(known) == (12, 0)

    def test_what_was_pruned_stays_so(self, known: Company, mode: Mode) -> None:
        known.connection.execute("insert into event_positions values (%s, 9, 5)", [known.id])
        summary = take(known, mode, known.event(position=5), known.event(position=6))
        assert (list(known.rows("events")), summary.unchanged) == (["6"], 1)

    def test_an_organization_that_does_not_exist_is_named(self, known: Company, mode: Mode) -> None:
        line = known.another().event()
        assert refused(known, mode, known.event(), line) == (2, "organization_id", NO_PARENT)

    def test_a_snapshot_removes_none(self, known: Company) -> None:
        known.load(line := known.event(position=1), known.event(position=2))
        load_with(known, SNAPSHOT, line, *conversation(known))
        assert len(known.rows("events")) == 2


@pytest.fixture(scope="module")
def many_messages(database_url: str, box: SecretBox) -> Iterator[Company]:
    """An organization with so many messages that a scan of them would show; one activity has half of them."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        company = Company(connection, box)
        cases = [company.case(id=str(number)) for number in range(100)]
        activities = [company.activity(id=str(number), case_id=str(number)) for number in range(100)]
        company.load(company.organization(), *cases, *activities)
        connection.execute(
            "insert into messages"
            " (organization_id, id, case_id, activity_id, sender_type, text, created_at, is_private)"
            " select a.organization_id, md5(n::text)::uuid, a.case_id, a.id, 'user', 'x', now(), false"
            " from (select *, row_number() over (order by id) as place from activities where organization_id = %s) a"
            " join generate_series(1, 100000) n on a.place = case when n %% 2 = 0 then 1 else 1 + n %% 100 end",
            [company.id],
        )
        connection.execute(
            "update activities set message_count = (select count(*) from messages m where m.organization_id ="
            " activities.organization_id and m.activity_id = activities.id) where organization_id = %s",
            [company.id],
        )
        connection.execute("analyze messages, activities, cases")
        yield company
        connection.execute("delete from cases where organization_id = %s", [company.id])


@pytest.mark.parametrize(
    "name",
    [
        "lock_conversations",
        "fill_counted",
        "fill_left_out messages",
        "fill_cases",
        "exclude_without_parent messages.activity_id",
        "exclude_still_needed messages.activity_id",
        "write_new messages",
        "write messages",
        "remove messages",
        "remove_contents",
        "write_counts",
    ],
)
@pytest.mark.parametrize("joins", JOINS)
def test_a_hundred_messages_among_many_are_found_by_index(many_messages: Company, joins: str, name: str) -> None:
    connection = many_messages.connection
    with connection.transaction(force_rollback=True):
        create_staging(connection, "activities", "messages", joins=joins)
        connection.execute(
            "insert into staged_messages (place, deleted, left_out, organization_id, id, activity_id, case_id,"
            " sender_type, text, created_at, is_private) select row_number() over (), n %% 2 = 0, 16,"
            " organization_id, case when n %% 3 = 0 then gen_random_uuid() else id end, activity_id, case_id,"
            " sender_type, 'new', created_at, n %% 4 < 2 from (select *, row_number() over () as n from messages"
            " where organization_id = %s limit 100) stored",
            [many_messages.id],
        )
        connection.execute(
            "insert into staged_activities (place, deleted, left_out, organization_id, id)"
            " select 1, true, 0, organization_id, id from activities where organization_id = %s limit 100",
            [many_messages.id],
        )
        index_staging(connection, "activities", "messages")
        for prepared in ("create_staging_of_counts", "index_messages", "fill_counted", "create_counts"):
            connection.execute(STATEMENTS[prepared].encode())
        connection.execute(
            "update staged_activities set takes_along = true where id in (select id from activities"
            " where organization_id = %s and message_count between 1 and 1000 limit 1)",
            [many_messages.id],
        )
        connection.execute(STATEMENTS["analyze_staging activities"].encode())
        plan = plan_of(many_messages, name)
    assert "messages" not in scanned(plan)
    assert buffers(plan) < 100 * 60
