"""A load that stores what is right, leaves newer rows alone and keeps what is left out: what a feed needs."""

import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from uuid import uuid4

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.kept_lines import KeptLines
from cases_service.loading.load import load
from cases_service.loading.outcome import LoadError, LoadOptions, LoadSummary
from cases_service.loading.statements import STATEMENTS
from tests.loading.test_loading import (
    Company,
    Fields,
    another_connection,
    company,
    file_of,
    removal,
    removed,
    take_turn,
    twin,
    written,
)
from tests.torture import times

__all__ = ["company", "twin"]

EACH = LoadOptions(mode="each")
NEWER = LoadOptions(if_newer=True)
KEEP = LoadOptions(keeps_left_out=True)
SEEDS = range(times(3, torture=10))
# The sessions of requests join by nested loops alone.
JOINS = ("any join", "nested loops")
NO_PARENT = "there is no such row in this organization when all files are read"
NEEDED = "other rows still refer to this one when all files are read"
TAKEN = "another case of the organization has this number"


REQUIRED = ("id", "case_number", "status", "priority", "created_at")


def at(second: int) -> str:
    return f"2024-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def load_with(company: Company, options: LoadOptions, *lines: Fields | bytes) -> LoadSummary:
    return load(company.connection, [file_of(*lines)], box=company.box, options=options)


def wrong(summary: LoadSummary) -> list[tuple[int, str | None, str]]:
    assert summary.error_count == len(summary.errors)
    return [(error.line, error.field, error.detail) for error in summary.errors]


def states(company: Company) -> dict[str, dict[str, dict[str, Any]]]:
    """Return all rows, without where they lie."""
    return {
        table: {key: {name: value for name, value in row.items() if name != "ctid"} for key, row in rows.items()}
        for table, rows in company.snapshot().items()
    }


@pytest.fixture
def known(company: Company) -> Company:
    company.load(company.organization())
    return company


class TestEach:
    def test_what_is_right_is_stored_and_what_is_wrong_is_named(self, known: Company) -> None:
        right = known.case(), known.contact()
        summary = load_with(known, EACH, right[0], b"no json", known.case(priority=6), b"", right[1])
        assert written(summary) == {"case": 1, "contact": 1}
        assert [(line, field) for line, field, _ in wrong(summary)] == [(2, None), (3, "priority")]
        assert (summary.lines, summary.unchanged, summary.stale) == (4, 0, 0)

    def test_a_line_that_refers_to_nothing_is_named(self, known: Company) -> None:
        lines = known.case(contact_id=str(uuid4())), known.case(owner_id="7"), known.case()
        summary = load_with(known, EACH, *lines)
        assert wrong(summary) == [(1, "contact_id", NO_PARENT), (2, "owner_id", NO_PARENT)]
        assert list(known.rows("cases")) == [lines[2]["id"]]

    def test_a_line_that_refers_to_a_wrong_one_is_wrong_as_well(self, known: Company) -> None:
        visitor = known.visitor(external_id="")
        contact = known.contact(visitor_id=visitor["id"])
        case = known.case(contact_id=contact["id"])
        summary = load_with(known, EACH, case, contact, visitor, known.user())
        assert [(line, field) for line, field, _ in wrong(summary)] == [
            (1, "contact_id"),
            (2, "visitor_id"),
            (3, "external_id"),
        ]
        assert written(summary) == {"user": 1}

    @pytest.mark.parametrize("options", [EACH, LoadOptions(mode="each", if_newer=True)])
    def test_a_right_line_counts_if_a_later_one_of_its_row_is_wrong(self, known: Company, options: LoadOptions) -> None:
        case, taken = known.case(updated_at=at(1), subject="right"), known.case()
        known.load(taken)
        lines = [
            case,
            {**case, "updated_at": at(2), "owner_id": "nobody"},
            {**case, "updated_at": at(3), "case_number": taken["case_number"]},
        ]
        summary = load_with(known, options, *lines, known.user())
        assert wrong(summary) == [(2, "owner_id", NO_PARENT), (3, "case_number", TAKEN)]
        assert (written(summary), summary.unchanged, summary.stale) == ({"user": 1, "case": 1}, 0, 0)
        assert known.rows("cases")[case["id"]]["subject"] == "right"

    def test_what_refers_to_a_row_whose_later_line_is_wrong_is_right(self, known: Company) -> None:
        contact = known.contact(phone="right")
        case = known.case(contact_id=contact["id"], subject="last")
        wrong_one = {**contact, "visitor_id": "nobody"}
        summary = load_with(known, EACH, {**case, "subject": "first"}, contact, case, wrong_one)
        assert wrong(summary) == [(4, "visitor_id", NO_PARENT)]
        assert (written(summary), summary.unchanged) == ({"contact": 1, "case": 1}, 1)
        assert known.rows("cases")[case["id"]]["subject"] == "last"
        assert known.rows("contacts")[contact["id"]]["phone"] == "right"

    def test_a_row_stays_as_the_last_line_before_a_wrong_removal_says(self, known: Company) -> None:
        contact = known.contact()
        known.load(contact, known.case(contact_id=contact["id"]))
        summary = load_with(known, EACH, {**contact, "phone": "new"}, removal(contact))
        assert wrong(summary) == [(2, "deleted", NEEDED)]
        assert known.rows("contacts")[contact["id"]]["phone"] == "new"

    @pytest.mark.parametrize("newer", [False, True])
    def test_of_merged_lines_only_the_one_that_gives_the_wrong_field_is_wrong(
        self, known: Company, newer: bool
    ) -> None:
        case = known.case(updated_at=at(1))
        known.load(case)
        required = known.line("case", **{name: case[name] for name in REQUIRED})
        lines = [
            {**required, "updated_at": at(2), "subject": "right"},
            {**required, "updated_at": at(3), "owner_id": "nobody"},
            {**required, "updated_at": at(4), "description": "right"},
        ]
        options = LoadOptions(mode="each", keeps_left_out=True, if_newer=newer)
        assert wrong(load_with(known, options, *lines)) == [(2, "owner_id", NO_PARENT)]
        row = known.rows("cases")[case["id"]]
        assert (row["subject"], row["description"], row["owner_id"]) == ("right", "right", None)

    def test_many_wrong_lines_of_a_row_are_given_up_at_last(self, known: Company) -> None:
        case = known.case(subject="right")
        lines = [case, *({**case, "owner_id": f"nobody {number}"} for number in range(20))]
        summary = load_with(known, EACH, *lines, known.user())
        assert written(summary)["user"] == 1
        assert {error.field for error in summary.errors} == {"owner_id"}
        assert summary.lines == 22 == summary.error_count + summary.unchanged + sum(written(summary).values())

    def test_a_removal_of_what_is_still_needed_is_named_and_the_others_happen(self, known: Company) -> None:
        needed, free = known.contact(), known.contact()
        case = known.case(contact_id=needed["id"])
        known.load(needed, free, case)
        summary = load_with(known, EACH, removal(needed), removal(free))
        assert wrong(summary) == [(1, "deleted", NEEDED)]
        assert removed(summary) == {"contact": 1}

    def test_what_a_wrong_line_leaves_in_place_is_still_needed(self, known: Company) -> None:
        contact = known.contact()
        case = known.case(contact_id=contact["id"])
        known.load(contact, case)
        summary = load_with(known, EACH, removal(contact), {**case, "contact_id": None, "priority": 9})
        assert [(line, field) for line, field, _ in wrong(summary)] == [(1, "deleted"), (2, "priority")]
        assert states(known)["contacts"].keys() == {contact["id"]}

    def test_a_number_that_a_row_has_stays_with_it(self, known: Company) -> None:
        holder, other = known.case(case_number="1"), known.case(case_number="2")
        known.load(holder, other)
        summary = load_with(known, EACH, {**other, "case_number": "1"}, known.case(case_number="3"))
        assert wrong(summary) == [(1, "case_number", TAKEN)]
        assert {row["case_number"] for row in known.rows("cases").values()} == {"1", "2", "3"}

    def test_of_two_lines_with_one_number_the_first_is_stored(self, known: Company) -> None:
        first, second = known.case(case_number="1"), known.case(case_number="1")
        assert wrong(load_with(known, EACH, first, second)) == [(2, "case_number", TAKEN)]
        assert list(known.rows("cases")) == [first["id"]]

    def test_a_row_that_has_the_number_already_goes_first(self, known: Company) -> None:
        holder = known.case(case_number="1")
        known.load(holder)
        summary = load_with(known, EACH, known.case(case_number="1"), {**holder, "subject": "new"})
        assert wrong(summary) == [(1, "case_number", TAKEN)]
        assert written(summary) == {"case": 1}

    def test_numbers_are_swapped(self, known: Company) -> None:
        one, two = known.case(case_number="1"), known.case(case_number="2")
        known.load(one, two)
        summary = load_with(known, EACH, {**one, "case_number": "2"}, {**two, "case_number": "1"})
        assert (written(summary), summary.error_count) == ({"case": 2}, 0)

    def test_a_chain_of_numbers_breaks_where_the_last_one_is_taken(self, known: Company) -> None:
        cases = [known.case(case_number=str(number)) for number in range(50)]
        known.load(*cases)
        moved = [{**case, "case_number": str(number + 1)} for number, case in enumerate(cases[:-1])]
        summary = load_with(known, EACH, *moved, known.case(case_number="free"))
        assert [line for line, _, _ in wrong(summary)] == list(range(1, 50))
        assert written(summary) == {"case": 1}

    def test_a_number_is_free_after_a_removal(self, known: Company) -> None:
        old = known.case(case_number="1")
        known.load(old)
        summary = load_with(known, EACH, known.case(case_number="1"), removal(old))
        assert (written(summary), removed(summary), summary.error_count) == ({"case": 1}, {"case": 1}, 0)

    def test_an_identity_is_not_free_where_its_visitor_cannot_be_removed(self, known: Company) -> None:
        old, new = known.visitor(external_id="1"), known.visitor(external_id="1")
        known.load(old, known.contact(visitor_id=old["id"]))
        follower = known.contact(visitor_id=new["id"])
        summary = load_with(known, EACH, new, removal(old), follower, known.contact())
        reason = "another visitor of the organization has this identity"
        assert wrong(summary) == [
            (1, "external_id", reason),
            (2, "deleted", NEEDED),
            (3, "visitor_id", NO_PARENT),
        ]
        assert written(summary) == {"contact": 1}

    def test_a_visitor_is_merged_into_another(self, known: Company) -> None:
        kept, gone = known.visitor(external_id="kept"), known.visitor(external_id="gone")
        contact = known.contact(visitor_id=gone["id"])
        known.load(kept, gone, contact)
        summary = load_with(known, EACH, removal(gone), {**contact, "visitor_id": kept["id"]})
        assert (written(summary), removed(summary)) == ({"contact": 1}, {"visitor": 1})

    def test_a_contact_is_merged_into_another(self, known: Company) -> None:
        kept, gone = known.contact(), known.contact()
        case = known.case(contact_id=gone["id"])
        known.load(kept, gone, case)
        summary = load_with(known, EACH, removal(gone), {**case, "contact_id": kept["id"]})
        assert (written(summary), removed(summary)) == ({"case": 1}, {"contact": 1})

    def test_only_the_first_errors_are_kept_and_all_are_counted(self, known: Company) -> None:
        summary = load_with(known, EACH, *(known.case(owner_id="x") for _ in range(150)), *[b"{}"] * 250)
        assert summary.error_count == 400
        assert [error.line for error in summary.errors] == list(range(1, 101))

    def test_keys_beyond_the_limit_and_changed_ones_are_named(self, known: Company) -> None:
        old = known.public_key()
        known.load(old)
        keys = [known.public_key() for _ in range(10)]
        summary = load_with(known, EACH, {**old, "public_key": keys[0]["public_key"]}, *keys)
        assert [(line, field) for line, field, _ in wrong(summary)] == [(1, "public_key"), (11, "id")]
        assert len(known.rows("signing_keys")) == 10

    def test_a_line_of_an_organization_that_does_not_exist_is_named(self, known: Company) -> None:
        summary = load_with(known, EACH, known.another().case(), known.case())
        assert wrong(summary) == [(1, "organization_id", NO_PARENT)]

    def test_a_line_that_is_too_long_is_named_and_the_next_one_is_read(self, known: Company) -> None:
        summary = load_with(known, EACH, b" " * 3 * 2**20, known.case())
        assert wrong(summary) == [(1, None, "longer than 1 MiB")]
        assert written(summary) == {"case": 1}

    def test_each_line_is_counted_once(self, known: Company) -> None:
        case, gone = known.case(), known.case()
        known.load(case, gone)
        newer = {**case, "updated_at": at(1), "subject": "new"}
        options = LoadOptions(mode="each", if_newer=True)
        summary = load_with(known, options, case, newer, newer, removal(gone), known.case(priority=7), known.user())
        assert (written(summary), removed(summary)) == ({"user": 1, "case": 1}, {"case": 1})
        assert (summary.lines, summary.stale, summary.error_count, summary.unchanged) == (6, 2, 1, 0)

    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("mode", ["all", "each"])
    def test_what_a_removed_row_had_is_not_kept(
        self, known: Company, number: int, mode: Literal["all", "each"]
    ) -> None:
        case = known.case(subject="old", is_waiting=True)
        known.load(case)
        required = known.line("case", **{name: case[name] for name in (*REQUIRED, "updated_at")})
        lines = [required, {**required, "description": "new"}][:number]
        summary = load_with(known, LoadOptions(mode=mode, keeps_left_out=True), removal(case), *lines)
        row = known.rows("cases")[case["id"]]
        assert (row["subject"], row["is_waiting"]) == (None, False)
        assert row["description"] == (None, "new")[number - 1]
        assert (written(summary), removed(summary), summary.unchanged) == ({"case": 1}, {}, number)

    @pytest.mark.parametrize("mode", ["all", "each"])
    def test_what_a_row_older_than_its_removal_had_is_not_kept(
        self, known: Company, mode: Literal["all", "each"]
    ) -> None:
        case = known.case(updated_at=at(1), subject="old")
        known.load(case)
        required = known.line("case", **{name: case[name] for name in REQUIRED}, updated_at=at(3))
        options = LoadOptions(mode=mode, keeps_left_out=True, if_newer=True)
        load_with(known, options, {**removal(case), "updated_at": at(2)}, required)
        assert known.rows("cases")[case["id"]]["subject"] is None

    def test_what_a_row_newer_than_its_removal_has_is_kept(self, known: Company) -> None:
        case = known.case(updated_at=at(3), subject="old")
        known.load(case)
        required = known.line("case", **{name: case[name] for name in REQUIRED}, updated_at=at(4))
        options = LoadOptions(keeps_left_out=True, if_newer=True)
        load_with(known, options, {**removal(case), "updated_at": at(2)}, required)
        assert known.rows("cases")[case["id"]]["subject"] == "old"


class TestIfNewer:
    @pytest.mark.parametrize(("second", "is_written"), [(0, False), (1, False), (2, True)])
    def test_a_case_is_written_only_if_it_is_newer(self, known: Company, second: int, is_written: bool) -> None:
        case = known.case(updated_at=at(1), subject="stored")
        known.load(case)
        summary = load_with(known, NEWER, {**case, "updated_at": at(second), "subject": "line"})
        assert (summary.written["case"], summary.stale) == ((1, 0) if is_written else (0, 1))
        assert known.rows("cases")[case["id"]]["subject"] == ("line" if is_written else "stored")

    def test_so_is_a_contact(self, known: Company) -> None:
        contact = known.contact(updated_at=at(1))
        known.load(contact)
        summary = load_with(known, NEWER, {**contact, "phone": "1"}, known.user())
        assert (written(summary), summary.stale) == ({"user": 1}, 1)

    def test_a_contact_that_does_not_say_when_is_always_written(self, known: Company) -> None:
        contact = known.contact(updated_at=at(1))
        known.load(contact)
        undated = known.line("contact", id=contact["id"], phone="1")
        assert written(load_with(known, NEWER, undated)) == {"contact": 1}

    @pytest.mark.parametrize(("second", "is_removed"), [(0, False), (1, False), (2, True), (None, True)])
    def test_a_removal_that_says_when_is_too(self, known: Company, second: int | None, is_removed: bool) -> None:
        case = known.case(updated_at=at(1))
        known.load(case)
        line = removal(case) if second is None else {**removal(case), "updated_at": at(second)}
        summary = load_with(known, NEWER, line)
        assert (summary.removed["case"], summary.stale) == ((1, 0) if is_removed else (0, 1))

    def test_of_the_lines_of_a_row_the_newest_counts(self, known: Company) -> None:
        case = known.case()
        lines = [{**case, "updated_at": at(second), "subject": str(second)} for second in (2, 3, 1)]
        summary = load_with(known, NEWER, *lines)
        assert (summary.written["case"], summary.stale) == (1, 2)
        assert known.rows("cases")[case["id"]]["subject"] == "3"

    @pytest.mark.parametrize("mode", ["all", "each"])
    def test_a_line_older_than_the_stored_row_adds_nothing_to_a_newer_line(
        self, known: Company, mode: Literal["all", "each"]
    ) -> None:
        case = known.case(updated_at=at(2), subject="stored")
        known.load(case)
        newer = {name: value for name, value in case.items() if name != "subject"} | {"updated_at": at(3)}
        older = {**case, "updated_at": at(1), "subject": "old"}
        options = LoadOptions(mode=mode, if_newer=True, keeps_left_out=True)
        summary = load_with(known, options, older, newer)
        assert (summary.written["case"], summary.stale) == (1, 1)
        assert known.rows("cases")[case["id"]]["subject"] == "stored"

    def test_an_old_export_reverts_nothing(self, known: Company) -> None:
        old = [known.case(updated_at=at(0), subject="old") for _ in range(20)]
        known.load(*({**case, "updated_at": at(1), "subject": "new"} for case in old))
        before = known.snapshot()
        assert load_with(known, NEWER, *old).stale == 20
        assert known.snapshot() == before

    @pytest.mark.parametrize("seed", SEEDS)
    def test_shuffled_lines_in_small_loads_at_once_end_as_in_order(
        self, known: Company, box: SecretBox, seed: int
    ) -> None:
        chance = random.Random(seed)  # noqa: S311
        log = updates(known, chance)
        known.load(*log)
        expected = {key: row["subject"] for key, row in known.rows("cases").items()}
        assert 100 < len(expected) < 180
        known.load(*map(removal, known_cases(known)))
        lines = log * 3
        chance.shuffle(lines)
        batches = [lines[start : start + 200] for start in range(0, len(lines), 200)]

        def feed(own: list[list[Fields]]) -> None:
            with another_connection(known) as connection:
                for batch in own:
                    load(connection, [file_of(*batch)], box=box, options=NEWER)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(feed, [batches[::2], batches[1::2]]))
        assert {key: row["subject"] for key, row in known.rows("cases").items()} == expected
        before = known.snapshot()
        again = load_with(known, NEWER, *lines)
        assert sum(again.written.values()) + sum(again.removed.values()) == 0
        assert known.snapshot() == before


def updates(company: Company, chance: random.Random, *, lines: int = 1000, cases: int = 180) -> list[Fields]:
    """Return a log of changes and removals of cases, each later than the one before."""
    made = [company.case() for _ in range(cases)]
    chosen = [(second, chance.choice(made)) for second in range(lines)]
    return [
        {**removal(case), "updated_at": at(second)}
        if chance.random() < 0.2
        else {**case, "updated_at": at(second), "subject": str(second)}
        for second, case in chosen
    ]


def known_cases(company: Company) -> list[Fields]:
    return [{"type": "case", "id": key, "organization_id": company.id} for key in company.rows("cases")]


class TestKeeping:
    def test_a_field_that_is_left_out_stays(self, known: Company) -> None:
        case = known.case(subject="kept", is_waiting=True, unread_message_count=4, channel_priority=2)
        known.load(case)
        line = {name: case[name] for name in known.case()}
        summary = load_with(known, KEEP, {**line, "description": "new", "channel_priority": None})
        stored = known.rows("cases")[case["id"]]
        assert (stored["subject"], stored["description"], stored["channel_priority"]) == ("kept", "new", None)
        assert (stored["is_waiting"], stored["unread_message_count"]) == (True, 4)
        assert written(summary) == {"case": 1}

    def test_it_is_null_or_its_default_in_a_new_row(self, known: Company) -> None:
        case = known.case()
        load_with(known, KEEP, case, known.contact())
        stored = known.rows("cases")[case["id"]]
        assert (stored["subject"], stored["is_waiting"]) == (None, False)

    def test_the_lines_of_a_row_add_up(self, known: Company) -> None:
        user = known.user(first_name="Ada", title="Agent")
        known.load(user)
        lines = [known.user(id=user["id"], **fields) for fields in ({"alias": "a"}, {"email": "e"}, {"alias": "b"})]
        summary = load_with(known, KEEP, *lines)
        stored = known.rows("users")[user["id"]]
        assert [stored[name] for name in ("first_name", "title", "alias", "email")] == ["Ada", "Agent", "b", "e"]
        assert (summary.written["user"], summary.unchanged) == (1, 2)

    def test_what_came_before_a_removal_does_not_add_up(self, known: Company) -> None:
        case = known.case()
        load_with(known, KEEP, {**case, "subject": "old"}, removal(case), {**case, "description": "new"}, case)
        stored = known.rows("cases")[case["id"]]
        assert (stored["subject"], stored["description"]) == (None, "new")

    def test_with_times_the_newest_line_that_gives_a_field_counts(self, known: Company) -> None:
        case = known.case()
        lines = [
            {**case, "updated_at": at(3), "subject": "3"},
            {**case, "updated_at": at(2), "subject": "2", "description": "2"},
            {**case, "updated_at": at(4)},
        ]
        load_with(known, LoadOptions(if_newer=True, keeps_left_out=True), *lines)
        stored = known.rows("cases")[case["id"]]
        assert (stored["subject"], stored["description"]) == ("3", "2")

    @pytest.mark.parametrize("mode", ["all", "each"])
    def test_the_time_of_a_closing_stays_and_is_wanted_where_there_is_none(self, known: Company, mode: Any) -> None:
        closed, new = known.case(status="Closed", closed_at=at(5)), known.case(status="Closed")
        known.load(closed)
        options = LoadOptions(mode=mode, keeps_left_out=True)
        without = {name: value for name, value in closed.items() if name != "closed_at"}
        assert written(load_with(known, options, {**without, "subject": "x"})) == {"case": 1}
        reason = "a time is required: the case has not been closed yet"
        if mode == "each":
            assert wrong(load_with(known, options, new)) == [(1, "closed_at", reason)]
        else:
            with pytest.raises(LoadError, match=f"a.ndjson:1: closed_at: {reason}"):
                load_with(known, options, new)

    def test_an_opened_case_has_no_time_of_a_closing(self, known: Company) -> None:
        case = known.case(status="Closed", closed_at=at(5))
        known.load(case)
        load_with(
            known, KEEP, {name: value for name, value in {**case, "status": "Open"}.items() if name != "closed_at"}
        )
        assert known.rows("cases")[case["id"]]["closed_at"] is None


class TestOwnIds:
    def test_rows_are_found_again_by_them(self, known: Company) -> None:
        lines: list[Fields] = [
            known.user(id="7"),
            known.visitor(id="7", external_id="seven"),
            known.contact(id="7", visitor_id="7"),
            known.stage(id="7"),
            known.case(id="7", contact_id="7", owner_id="7", created_by_user_id="7", case_funnel_stage_id="7"),
        ]
        known.load(*lines)
        before = known.snapshot()
        assert written(known.load(*lines)) == {}
        assert removed(known.load(removal(lines[4]))) == {"case": 1}
        assert before["cases"].keys() != before["contacts"].keys()

    def test_a_reference_by_uuid_and_by_own_id_is_the_same(self, known: Company) -> None:
        known.load(known.contact(id="7"))
        (contact_id,) = known.rows("contacts")
        assert written(known.load(known.case(contact_id=contact_id), known.case(contact_id="7"))) == {"case": 2}


class TestTurns:
    def test_loads_of_two_organizations_do_not_wait_for_each_other(self, company: Company, twin: Company) -> None:
        with another_connection(company) as holder, holder.transaction():
            take_turn(holder, company)
            twin.connection.execute("set statement_timeout = '5s'")
            assert written(twin.load(twin.case())) == {"case": 1}

    @pytest.mark.parametrize("options", [LoadOptions(), EACH, LoadOptions(mode="each", if_newer=True), KEEP])
    def test_nothing_of_another_organization_is_touched(
        self, company: Company, twin: Company, options: LoadOptions
    ) -> None:
        lines = company.visitor(), company.contact(), company.case(), company.stage(), company.user()
        twin.load(*({**line, "organization_id": twin.id} for line in lines))
        company.load(*lines)
        before = twin.snapshot()
        load_with(company, options, {**lines[2], "updated_at": at(1), "subject": "x"}, *map(removal, lines[:2]))
        assert twin.snapshot() == before


@pytest.fixture(scope="module")
def many_cases(database_url: str, box: SecretBox) -> Iterator[Company]:
    """An organization with so many cases that a scan of them would show."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        company = Company(connection, box)
        contacts = [company.contact(id=str(number)) for number in range(1000)]
        company.load(company.organization(), company.user(id="u"), *contacts)
        (user,) = company.rows("users")
        connection.execute(
            "insert into cases (organization_id, id, case_number, contact_id, owner_id, status, priority, created_at,"
            " updated_at) select %s, md5(n::text)::uuid, n::text, (%s::uuid[])[1 + n %% 1000], %s, 'Open', 3,"
            " now(), '2020-01-01Z' from generate_series(1, 100000) n",
            [company.id, list(company.rows("contacts")), user],
        )
        connection.execute("analyze cases")
        yield company
        connection.execute("delete from cases where organization_id = %s", [company.id])


def buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def scanned(plan: dict[str, Any]) -> set[str | None]:
    """Return the tables that a plan reads from end to end."""
    return {node.get("Relation Name") for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


def create_staging(connection: psycopg.Connection, *tables: str, joins: str) -> None:
    for setting in ("hashjoin", "mergejoin", "bitmapscan") if joins == "nested loops" else ():
        connection.execute(f"set local enable_{setting} = off".encode())
    for table in tables:
        connection.execute(STATEMENTS[f"create_staging {table}"].encode())


def index_staging(connection: psycopg.Connection, *tables: str) -> None:
    for table in tables:
        connection.execute(STATEMENTS[f"index_staging {table}"].encode())
        connection.execute(STATEMENTS[f"analyze_staging {table}"].encode())


def plan_of(company: Company, name: str) -> dict[str, Any]:
    """Run a statement of a load, and return its plan with what it read."""
    explain = f"explain (analyze, buffers, format json) {STATEMENTS[name]}"
    given = {"organization_id": company.id} if "%(" in explain else None
    ((explained,),) = company.connection.execute(explain.encode(), given, prepare=False).fetchall()
    plan: dict[str, Any] = explained[0]["Plan"]
    return plan


@pytest.mark.parametrize(
    "name",
    [
        "lock_rows cases",
        "skip_late cases",
        "skip_stale cases",
        "fill_left_out cases",
        "exclude_without_parent cases.contact_id",
        "exclude_without_parent cases.owner_id",
        "exclude_repeated cases.case_number",
        "list_repeated cases.case_number",
        "write cases",
        "remove cases",
        "exclude_still_needed cases.contact_id",
    ],
)
@pytest.mark.parametrize("joins", JOINS)
def test_a_hundred_changed_cases_among_many_are_found_by_index(many_cases: Company, joins: str, name: str) -> None:
    connection = many_cases.connection
    with connection.transaction(force_rollback=True):
        create_staging(connection, "contacts", "cases", joins=joins)
        connection.execute(
            "insert into staged_cases (place, deleted, left_out, organization_id, id, case_number, contact_id,"
            " owner_id, status, priority, is_waiting, unread_message_count, visitor_unread_message_count, created_at,"
            " updated_at)"
            " select row_number() over (), false, 32, organization_id, id, case_number, contact_id, owner_id,"
            " 'Open', 5, false, 0, 0, now(), now() from cases where organization_id = %s limit 100",
            [many_cases.id],
        )
        connection.execute(
            "insert into staged_contacts (place, deleted, left_out, organization_id, id)"
            " select 1, true, 0, organization_id, id from contacts where organization_id = %s limit 100",
            [many_cases.id],
        )
        index_staging(connection, "contacts", "cases")
        connection.execute(STATEMENTS["index_claims cases.case_number"].encode())
        plan = plan_of(many_cases, name)
    assert "cases" not in scanned(plan)
    assert buffers(plan) < 100 * 60


class TestKeptLines:
    def test_they_are_read_again_by_their_numbers(self) -> None:
        stream = io.BytesIO(b"one\n\n\xff\nsigning_key\nlast")
        with KeptLines(stream) as lines:
            while lines.readline(3):
                pass
            assert list(lines.read({1, 3, 4, 5})) == [
                (1, {"text": "one"}),
                (3, {"text": "\ufffd"}),
                (4, {}),
                (5, {"text": "last"}),
            ]
