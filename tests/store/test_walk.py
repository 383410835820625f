"""Walks over random data with many ties, while it changes, held against a plain model of what a walk promises."""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases_service.credentials.secret_encryption import SecretBox
from tests.factories import LONG_AGO, Organization, Visitor, get

ORDERINGS = ("created_at", "-created_at", "updated_at", "-updated_at")

moments = st.integers(0, 3)
"""So few that most cases share theirs with others."""


@dataclass
class Case:
    contact: int
    created: int
    updated: int


@dataclass
class World:
    """A visitor's cases in the database, and the same in a dictionary."""

    visitor: Visitor
    cases: dict[UUID, Case] = field(default_factory=dict)

    def add(self, case: Case) -> None:
        contacts = self.visitor.contact_ids
        case_id = self.visitor.organization.case(
            contacts[case.contact % len(contacts)],
            LONG_AGO + timedelta(microseconds=case.created),
            updated_at=LONG_AGO + timedelta(microseconds=case.updated),
        )
        self.cases[case_id] = case

    def delete(self, case_id: UUID) -> None:
        organization = self.visitor.organization
        organization.connection.execute(
            "delete from cases where organization_id = %s and id = %s", [organization.id, case_id]
        )
        del self.cases[case_id]

    def touch(self, case_id: UUID, updated: int) -> None:
        moment = LONG_AGO + timedelta(microseconds=updated)
        self.visitor.organization.update("cases", "id", case_id, updated_at=moment)
        self.cases[case_id].updated = updated

    def ordered(self, ordering: str) -> list[UUID]:
        def key(case_id: UUID) -> tuple[int, UUID]:
            case = self.cases[case_id]
            return (case.created if "created" in ordering else case.updated), case_id

        return sorted(self.cases, key=key, reverse=ordering.startswith("-"))


cases = st.builds(Case, st.integers(0, 3), moments, moments)
changes = st.one_of(
    st.tuples(st.just("add"), cases),
    st.tuples(st.just("delete"), st.integers(0, 100)),
    st.tuples(st.just("touch"), st.integers(0, 100), moments),
)


@pytest.fixture
def new_world(session_connection: psycopg.Connection, box: SecretBox) -> Any:
    def new_world(given_cases: list[Case], contacts: int) -> World:
        world = World(Organization(session_connection, box).visitor(contacts=contacts))
        for case in given_cases:
            world.add(case)
        return world

    return new_world


def page(app: Flask, world: World, url: str) -> dict[str, Any]:
    response = get(app.test_client(), world.visitor.organization, url)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.get_json()
    document["ids"] = [UUID(case["id"]) for case in document["results"]]
    return document


def first_url(world: World, ordering: str, page_size: int) -> str:
    return f"{world.visitor.path}?ordering={ordering}&page_size={page_size}"


quiet = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quiet
@given(st.lists(cases, max_size=25), st.integers(1, 4), st.sampled_from(ORDERINGS), st.integers(1, 7))
def test_a_quiet_walk_shows_everything_in_order_and_back(
    app: Flask, new_world: Any, given_cases: list[Case], contacts: int, ordering: str, page_size: int
) -> None:
    world = new_world(given_cases, contacts)
    expected = world.ordered(ordering)
    pages = [page(app, world, first_url(world, ordering, page_size))]
    while pages[-1]["next"]:
        pages.append(page(app, world, pages[-1]["next"]))
    assert [case_id for document in pages for case_id in document["ids"]] == expected
    assert all(len(document["ids"]) == page_size for document in pages[:-1])
    for index in range(len(pages) - 1, 0, -1):
        assert page(app, world, pages[index]["previous"])["ids"] == pages[index - 1]["ids"]
    assert pages[0]["previous"] is None


def apply(world: World, change: tuple[Any, ...], protected: set[UUID]) -> None:
    """Change the data, except for cases that the walk is promised to show."""
    if change[0] == "add":
        world.add(Case(**vars(change[1])))
        return
    free = sorted(set(world.cases) - protected)
    if not free:
        return
    chosen = free[change[1] % len(free)]
    if change[0] == "delete":
        world.delete(chosen)
    else:
        world.touch(chosen, change[2])


@quiet
@given(
    st.lists(cases, min_size=3, max_size=25),
    st.integers(1, 4),
    st.sampled_from(ORDERINGS),
    st.lists(st.tuples(st.integers(1, 6), st.lists(changes, max_size=4)), min_size=1, max_size=30),
    st.booleans(),
)
def test_a_walk_during_changes_shows_every_lasting_case_exactly_once(
    app: Flask,
    new_world: Any,
    given_cases: list[Case],
    contacts: int,
    ordering: str,
    steps: list[tuple[int, list[tuple[Any, ...]]]],
    backwards: bool,
) -> None:
    world = new_world(given_cases, contacts)
    lasting = set(world.ordered(ordering)[::2])
    link, start = "next", first_url(world, ordering, steps[0][0])
    if backwards:
        # To the end first, then back by `previous`.
        document = page(app, world, first_url(world, ordering, 100))
        assert document["previous"] is None
        last = page(app, world, first_url(world, ordering, max(len(world.cases) - 1, 1)))
        link, start = "previous", last["next"]
    seen: list[UUID] = []
    url: str | None = start
    turn = 0
    while url and turn < 200:
        page_size, todo = steps[turn % len(steps)]
        document = page(app, world, re.sub(r"page_size=\d+", f"page_size={page_size}", url))
        shown = document["ids"]
        if backwards:
            seen = shown + seen
        else:
            seen += shown
        check_links(world, ordering, document)
        url = document[link]
        # Once the script is through, the rest of the walk is quiet, so that it comes to an end.
        for change in todo if turn < len(steps) else []:
            apply(world, change, lasting)
        turn += 1
    assert turn < 200
    repeated = {case_id for case_id in seen if seen.count(case_id) > 1}
    assert not repeated & lasting
    assert lasting <= set(seen)
    surviving = [case_id for case_id in seen if case_id in lasting]
    assert surviving == [case_id for case_id in world.ordered(ordering) if case_id in lasting]


def check_links(world: World, ordering: str, document: dict[str, Any]) -> None:
    """A link is null exactly when no case lies beyond that end."""
    expected = world.ordered(ordering)
    if document["ids"]:
        first, last = expected.index(document["ids"][0]), expected.index(document["ids"][-1])
        assert document["ids"] == expected[first : last + 1]
        assert (document["previous"] is None) == (first == 0)
        assert (document["next"] is None) == (last == len(expected) - 1)
