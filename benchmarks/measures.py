"""What is measured of reading: throughput, the tail of latency under a fixed rate, flatness, and the plots' curves.

The contestants are started once and stay up; an idle one takes no CPU time. Every measure goes round by round, in each
round contestant by contestant, in an order that moves on with the round, so that what else the machine does meets all
of them alike. Ratios are those of neighbours within a round.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from statistics import median
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import msgspec
import psutil

from benchmarks import pgbench
from benchmarks.contestant import Contestant, Place, Running, tree_cpu
from benchmarks.credentials import Credentials
from benchmarks.dataset import (
    CONTACTS,
    LONG_CONVERSATION,
    ORDINARY_CASES,
    ORGANIZATION,
    SHORT_CONVERSATION,
    Connection,
    Size,
    case_with_messages,
    heavy_visitor,
    message_place,
    places,
    written_cases,
)
from benchmarks.load import Answer, Client, Loaded, NoAnswerError, closed_loop, open_loop
from cases_service.cases.filters import Filters
from cases_service.cases.pagination import Collection, Cursor, Position, visitor_tag
from cases_service.store.cases import ORDERINGS
from cases_service.store.conversations import collection as message_collection

GATED: Final = ("service", "floor")
PAGES: Final = ("page of 10", "page of 25", "detail")
MESSAGES: Final = "page of 25 messages"
CHANGE: Final = "PATCH of a case"
NOT_MODIFIED: Final = "304 of a page of 25"
KINDS: Final = (*PAGES, MESSAGES, CHANGE, NOT_MODIFIED)
TAIL_SHARE: Final = 0.7
_VISITORS: Final = 200
_CHANGES: Final = 8_000
_CURVE_TIMEOUT: Final = 10.0
_NEVER: Final = float("inf")

Curve = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Plan:
    """How long everything takes. A peer joins every `peers_every`-th round."""

    workers: int = 2
    threads: int = 4
    connections: int = 16
    rounds: int = 12
    seconds: float = 2.5
    warm_up_seconds: float = 4.0
    peers_every: int = 3
    tail_rounds: int = 15
    tail_slices: int = 12
    tail_slice_seconds: float = 0.5
    flat_rounds: int = 45
    curve_rounds: int = 30
    curve_budget: float = 6.0
    message_rounds: int = 60
    import_rounds: int = 20
    feed_rounds: int = 8
    feed_slices: int = 6
    feed_slice_seconds: float = 1.0
    load_rows: int = 1_000_000
    load_parts: int = 4


@dataclass
class Bench:
    """What all measures need."""

    plan: Plan
    size: Size
    running: dict[str, Running]
    credentials: Credentials
    connection: Connection

    changes: Iterator[int] = field(default_factory=lambda: count(time.time_ns()))
    """Numbers of what is written, so that no two writes are of the same text, in no two runs on the same data."""

    def turns(self, rounds: int) -> Iterator[tuple[int, list[Running]]]:
        """Give for each round the contestants in their order."""
        for number in range(rounds):
            names = [
                name
                for name, running in self.running.items()
                if running.contestant.joins_every_round or number % self.plan.peers_every == 0
            ]
            shift = number % len(names)
            yield number, [self.running[name] for name in names[shift:] + names[:shift]]

    @cached_property
    def postgres(self) -> psutil.Process | None:
        """The database's first process; None where it runs elsewhere."""
        try:
            found = psutil.Process(self.connection.info.backend_pid).parent()
        except psutil.Error:
            return None
        return found if found is not None and "postgres" in found.name() else None

    def postgres_cpu(self) -> float | None:
        """Return the seconds of CPU time that the database has taken, for whomever; None where it runs elsewhere."""
        return None if self.postgres is None else tree_cpu(self.postgres)

    def visitor_id(self, external_id: str) -> UUID:
        """Return the id of a visitor."""
        row = self.connection.execute(
            "select id::text from visitors where organization_id = %s and external_id = %s", [ORGANIZATION, external_id]
        ).fetchone()
        return UUID((row or ("",))[0])


def throughput(bench: Bench) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return what each contestant does under full load, for each kind of request, round by round."""
    requests = {kind: requests_of(bench, kind) for kind in (*PAGES, MESSAGES)}
    requests[NOT_MODIFIED] = _conditional_requests(bench)
    warm_up(bench, requests)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {} for kind in KINDS}
    for number, order in bench.turns(bench.plan.rounds):
        say(f"throughput, round {number + 1} of {bench.plan.rounds}")
        for kind in KINDS:
            for running in order:
                if not _answers(running.contestant, kind):
                    continue
                status = 304 if kind == NOT_MODIFIED else 200
                asked = change_requests(bench) if kind == CHANGE else requests[kind]
                sample = full_load(bench, running, asked, status)
                found[kind].setdefault(running.contestant.name, []).append({"round": number, **sample})
            if number % bench.plan.peers_every == 0:
                _add_pgbench(bench, found, kind, number)
    return found


def _answers(contestant: Contestant, kind: str) -> bool:
    if kind == NOT_MODIFIED:
        return contestant.name == "service"
    if kind in (MESSAGES, CHANGE):
        return contestant.name in GATED
    return kind.startswith("page of ") or kind in contestant.parts


def warm_up(bench: Bench, requests: Mapping[str, Sequence[bytes]]) -> None:
    """Let every process open its connections, prepare its statements and fill its caches."""
    for running in bench.running.values():
        say(f"warming up: {running.contestant.title}")
        kinds = [kind for kind in requests if kind != NOT_MODIFIED and _answers(running.contestant, kind)]
        with running.clients(bench.plan.connections, bench.plan.workers, requests[kinds[0]][0]) as clients:
            for kind in kinds:
                closed_loop(clients, requests[kind], seconds=bench.plan.warm_up_seconds)


def requests_of(bench: Bench, kind: str) -> list[bytes]:
    """Return requests of one kind for many ordinary visitors."""
    names = [f"ordinary-{number}" for number in range(1, _VISITORS + 1)]
    if kind == "detail":
        return [bench.credentials.request(name, f"/{_first_case(bench, name)}") for name in names]
    if kind == MESSAGES:
        paths = [f"/{case_with_messages(bench.connection, name)}/messages?page_size=25" for name in names]
        return [bench.credentials.request(name, path) for name, path in zip(names, paths, strict=True)]
    return [bench.credentials.request(name, f"?page_size={kind.removeprefix('page of ')}") for name in names]


def change_requests(bench: Bench) -> list[bytes]:
    """Return requests that change one attribute, each of another case and to another text than ever before."""
    number = next(bench.changes)
    return [
        bench.credentials.write(
            "PATCH", f"/cases/{case_id}", msgspec.json.encode({"subject": f"Changed as the {number}th, at {place}"})
        )
        for place, case_id in enumerate(written_cases(number * _CHANGES, _CHANGES))
    ]


def _first_case(bench: Bench, external_id: str) -> UUID:
    return places(bench.connection, external_id, "created_at", [0])[0][1]


def _conditional_requests(bench: Bench) -> list[bytes]:
    """Return the requests for pages of 25 with the ETags that the service gives them."""
    requests = []
    with Client(bench.running["service"].address) as client:
        for number in range(1, _VISITORS + 1):
            target = f"{bench.credentials.path(f'ordinary-{number}')}?page_size=25"
            head = client.ask(bench.credentials.request_for(target)).head.decode("latin-1")
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
            requests.append(bench.credentials.request_for(target, etag=fields["ETag"]))
    return requests


def full_load(bench: Bench, running: Running, requests: Sequence[bytes], status: int = 200) -> dict[str, Any]:
    """Return what a contestant does with every connection busy."""
    plan = bench.plan
    with running.clients(plan.connections, plan.workers, requests[0]) as clients:
        warm = closed_loop(clients, requests, seconds=plan.seconds / 5, status=status)
        begin = len(warm.latencies) % len(requests)
        cpu, postgres = running.cpu(), bench.postgres_cpu()
        loaded = closed_loop(clients, [*requests[begin:], *requests[:begin]], seconds=plan.seconds, status=status)
        taken = None if postgres is None else (bench.postgres_cpu() or 0.0) - postgres
        return sample_of(loaded, running.cpu() - cpu, postgres=taken)


def sample_of(loaded: Loaded, cpu: float, *, postgres: float | None = None) -> dict[str, Any]:
    """Return what came of a load, with the CPU seconds of the contestant and, where they are known, of PostgreSQL."""
    percentiles = {f"p{percent}_ms": _milliseconds(loaded.percentile(percent)) for percent in (50, 90, 99)}
    return {
        "rate": round(loaded.rate, 1),
        **percentiles,
        "errors": loaded.errors,
        "cpu_ms": _for_each(cpu, loaded),
        "postgres_cpu_ms": _for_each(postgres, loaded),
        "generator": round(loaded.generator, 3),
    }


def _for_each(seconds: float | None, loaded: Loaded) -> float | None:
    answers = len(loaded.latencies)
    return None if seconds is None or not answers else round(seconds / answers * 1000, 3)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _add_pgbench(bench: Bench, found: dict[str, dict[str, list[dict[str, Any]]]], kind: str, number: int) -> None:
    if kind not in PAGES[:2]:
        return
    rate = pgbench.rate(
        bench.credentials.database_url,
        visitors=_VISITORS,
        page_size=int(kind.removeprefix("page of ")),
        connections=bench.plan.workers * bench.plan.threads,
        seconds=max(round(bench.plan.seconds), 1),
    )
    if rate is not None:
        found[kind].setdefault("postgres", []).append({"round": number, "rate": rate, "errors": 0})


def tail(bench: Bench, best: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
    """Return latencies of pages of 25 where each contestant gets a share of its own best throughput.

    A round goes slice by slice, the contestants in turn, so that what stalls the machine for a second or two meets all
    of them; the percentiles are those of all slices of the round.
    """
    plan = bench.plan
    requests = requests_of(bench, "page of 25")
    found: dict[str, list[dict[str, Any]]] = {}
    for number, order in bench.turns(plan.tail_rounds):
        say(f"latency at {TAIL_SHARE:.0%} of the best throughput, round {number + 1} of {plan.tail_rounds}")
        with ExitStack() as stack:
            loads: list[_FixedRate] = []
            for running in order:
                if "tail" not in running.contestant.parts:
                    continue
                rate = best[running.contestant.name] * TAIL_SHARE
                clients = stack.enter_context(running.clients(plan.connections, plan.workers, requests[0]))
                open_loop(clients, requests, seconds=plan.tail_slice_seconds, rate=rate)
                loads.append(_FixedRate(running, clients, rate))
            for _ in range(plan.tail_slices):
                for load in loads:
                    load.go_on(requests, plan.tail_slice_seconds)
        for load in loads:
            sample = {"round": number, "asked": round(load.rate, 1), **sample_of(load.loaded, load.cpu)}
            found.setdefault(load.running.contestant.name, []).append(sample)
    return found


@dataclass
class _FixedRate:
    """One contestant's load of a round."""

    running: Running
    clients: list[Client]
    rate: float
    loaded: Loaded = field(default_factory=lambda: Loaded(0.0))
    cpu: float = 0.0

    def go_on(self, requests: Sequence[bytes], seconds: float) -> None:
        begin = len(self.loaded.latencies) % len(requests)
        before = self.running.cpu()
        turned = [*requests[begin:], *requests[:begin]]
        self.loaded.add(open_loop(self.clients, turned, seconds=seconds, rate=self.rate))
        self.cpu += self.running.cpu() - before


def flatness(bench: Bench) -> dict[str, Any]:
    """Return the latency of the service's pages of heavy visitors, beside that of an ordinary visitor's page of 25."""
    ordinary = bench.credentials.request("ordinary-1", f"?page_size={ORDINARY_CASES}")
    samples: dict[tuple[int, str], list[float]] = {}
    base: list[float] = []
    with Client(bench.running["service"].address) as client:
        pages = {contacts: _heavy_pages(bench, client, contacts) for contacts in CONTACTS}
        for number in range(bench.plan.flat_rounds + 8):
            say(f"flatness, round {number + 1} of {bench.plan.flat_rounds + 8}")
            for contacts, targets in pages.items():
                for index, (name, request) in enumerate(targets.items()):
                    if index % 8 == 0:
                        base.append(_answer(client, ordinary, "ordinary").seconds)
                    samples.setdefault((contacts, name), []).append(_answer(client, request, name).seconds)
    ordinary_ms = median(base[len(base) // 6 :]) * 1000
    medians = {key: median(values[8:]) * 1000 for key, values in samples.items()}
    return {
        "ordinary_ms": round(ordinary_ms, 3),
        "visitors": {
            str(contacts): {
                name: {
                    "ms": round(medians[contacts, name], 3),
                    "ratio": round(medians[contacts, name] / ordinary_ms, 3),
                }
                for name in targets
            }
            for contacts, targets in pages.items()
        },
    }


def message_flatness(bench: Bench) -> dict[str, Any]:
    """Return the latency of pages of 25 messages of a case with very many, beside that of a case with thirty.

    The pages are those at both ends and in the middle, forward and backward, one at a time over one connection.
    """
    base: list[float] = []
    samples: dict[str, list[float]] = {}
    with Client(bench.running["service"].address) as client:
        short = bench.credentials.request(SHORT_CONVERSATION, _messages_path(bench, SHORT_CONVERSATION))
        pages = _long_conversation(bench)
        for number in range(bench.plan.message_rounds + 8):
            say(f"messages, round {number + 1} of {bench.plan.message_rounds + 8}")
            for name, request in pages.items():
                base.append(_answer(client, short, "messages of a short conversation").seconds)
                samples.setdefault(name, []).append(_answer(client, request, name).seconds)
    short_ms = median(base[8 * len(pages) :]) * 1000
    medians = {name: median(values[8:]) * 1000 for name, values in samples.items()}
    return {
        "short_ms": round(short_ms, 3),
        "pages": {name: {"ms": round(ms, 3), "ratio": round(ms / short_ms, 3)} for name, ms in medians.items()},
    }


def _messages_path(bench: Bench, external_id: str) -> str:
    return f"/{case_with_messages(bench.connection, external_id)}/messages?page_size=25"


def _long_conversation(bench: Bench) -> dict[str, bytes]:
    """Return requests for pages of the long conversation, by name."""
    path = _messages_path(bench, LONG_CONVERSATION)
    case_id = case_with_messages(bench.connection, LONG_CONVERSATION)
    tag = visitor_tag(bench.visitor_id(LONG_CONVERSATION))
    requests = {}
    for ordering in ("created_at", "-created_at"):
        scope = message_collection(
            "messages", organization_id=ORGANIZATION, case_id=case_id, ordering=ordering, of="visitor"
        )
        requests[f"{ordering}, first page"] = f"{path}&ordering={ordering}"
        for share in (0.5, 0.999):
            place = message_place(bench.connection, case_id, share)
            for backward in (False, True):
                cursor = Cursor(Position(*place), backward, tag).encode(scope)
                name = f"{ordering}, at {share:.1%}{' backward' if backward else ''}"
                requests[name] = f"{path}&ordering={ordering}&cursor={cursor}"
    return {name: bench.credentials.request(LONG_CONVERSATION, target) for name, target in requests.items()}


def _answer(client: Client, request: bytes, name: str) -> Answer:
    answer = client.ask(request)
    if answer.status != 200:  # noqa: PLR2004
        raise RuntimeError(f"{answer.status} for {name}: {answer.body[:200]!r}")
    return answer


def _heavy_pages(bench: Bench, client: Client, contacts: int) -> dict[str, bytes]:
    """Return requests for the pages of a heavy visitor: orderings, depths, directions and filters."""
    external_id = heavy_visitor(contacts)
    path, tag = bench.credentials.path(external_id), visitor_tag(bench.visitor_id(external_id))
    last = bench.size.heavy - 1
    requests = {}
    for ordering in ORDERINGS:
        column = ordering.removeprefix("-")
        keys = places(
            bench.connection, external_id, column, [0, ORDINARY_CASES, last // 2, last - ORDINARY_CASES, last]
        )
        for wanted, filters in _filters(column, keys[last // 2][0]).items():
            scope = Collection(ORGANIZATION, ordering, filters.canonical())
            reverse = ordering[1:] if ordering.startswith("-") else f"-{ordering}"
            chosen = f"&{wanted}" if wanted else ""
            query = f"?page_size=1&ordering={reverse}{chosen}"
            end = _first_key(
                _answer(client, bench.credentials.request_for(path + query), query),
                Collection(ORGANIZATION, reverse, filters.canonical()),
            )
            for depth, position, backward in _depths(keys, last, end, descending=ordering.startswith("-")):
                name = ", ".join(part for part in (ordering, depth, wanted) if part)
                query = f"?page_size={ORDINARY_CASES}&ordering={ordering}{chosen}"
                if position is not None:
                    query += f"&cursor={Cursor(Position(*position), backward, tag).encode(scope)}"
                requests[name] = bench.credentials.request_for(path + query)
    return requests


def _first_key(answer: Answer, collection: Collection) -> Place | None:
    """Return where the one case of a page stands, as the link behind it says: None where there is no link."""
    link = json.loads(answer.body)["next"]
    if link is None:
        return None
    position = Cursor.decode(parse_qs(urlsplit(link).query)["cursor"][0], collection).position
    return position.microseconds, position.id


def _depths(
    keys: dict[int, Place], last: int, end: Place | None, *, descending: bool
) -> list[tuple[str, Place | None, bool]]:
    """Return name, position and direction of the pages: at both ends and in the middle, forward and backward."""
    before_last_page = keys[ORDINARY_CASES if descending else last - ORDINARY_CASES]
    return [
        ("first page", None, False),
        ("middle", keys[last // 2], False),
        ("middle backward", keys[last // 2], True),
        ("last page", before_last_page, False),
        ("last backward", end or keys[0 if descending else last], True),
    ]


def _filters(column: str, middle: int) -> dict[str, Filters]:
    """Return the query strings of the filters that are flat in the orderings of a column, and what they mean."""
    since, until = f"{column}_since".replace("_at", ""), f"{column}_until".replace("_at", "")
    far, early = 1_735_689_600_000_000, 1_420_156_800_000_000  # 2025-01-01 and 2015-01-02
    from_2025: dict[str, Any] = {since: far}
    to_2015: dict[str, Any] = {until: early}
    later_half: dict[str, Any] = {since: middle, "statuses": frozenset({"Closed"})}
    return {
        "": Filters(),
        "status=Open": Filters(statuses=frozenset({"Open"})),
        "status=Pending": Filters(statuses=frozenset({"Pending"})),
        "is_closed=false": Filters(is_closed=False),
        "is_closed=true": Filters(is_closed=True),
        "priority=5": Filters(priorities=frozenset({5})),
        "priority=3": Filters(priorities=frozenset({3})),
        "priority=4,5": Filters(priorities=frozenset({4, 5})),
        "latest_messaging_channel=webchat": Filters(channels=frozenset({"webchat"})),
        "latest_messaging_channel=email": Filters(channels=frozenset({"email"})),
        "latest_messaging_channel=null": Filters(channels=frozenset({"null"})),
        "latest_messaging_channel=email,whatsapp": Filters(channels=frozenset({"email", "whatsapp"})),
        f"{since}=2025-01-01T00:00:00Z": Filters(**from_2025),
        f"{until}=2015-01-02T00:00:00Z": Filters(**to_2015),
        f"status=Closed&{since}={_text(middle)}": Filters(**later_half),
    }


def _text(microseconds: int) -> str:
    moment = time.gmtime(microseconds // 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{microseconds % 1_000_000:06}Z"


def curves(bench: Bench) -> dict[str, Curve]:
    """Return median milliseconds, None where there was no right answer in time, for the plots: curve, name, place."""
    heavy = heavy_visitor(CONTACTS[0])
    last = bench.size.heavy - 1
    depths = {f"{share:g} %": int(last * share / 100) for share in (0, 0.1, 1, 10, 50, 99)}
    keys = places(bench.connection, heavy, "created_at", list(depths.values()))
    by_depth = {label: (heavy, keys[place] if place else None) for label, place in depths.items()}
    by_cases = {"25": ("ordinary-1", None)} | {f"{n:,}": (f"cases-{n}", None) for n in bench.size.steps}
    by_cases |= {f"{bench.size.heavy:,}": (heavy, None)}
    by_contacts = {str(contacts): (heavy_visitor(contacts), None) for contacts in CONTACTS}
    return {
        "depth": _curve(bench, by_depth),
        "cases": _curve(bench, by_cases),
        "contacts": _curve(bench, by_contacts),
    }


def _curve(bench: Bench, points: Mapping[str, tuple[str, Place | None]]) -> Curve:
    """Return the median of each contestant at each point: so many answers, or as many as the time allows."""
    drawn = {name: running for name, running in bench.running.items() if "curves" in running.contestant.parts}
    samples: dict[str, dict[str, list[float]]] = {name: {label: [] for label in points} for name in drawn}
    requests = {name: _curve_requests(bench, running, points) for name, running in drawn.items()}
    with ExitStack() as stack:
        clients = {name: stack.enter_context(Client(running.address)) for name, running in drawn.items()}
        for number in range(bench.plan.curve_rounds):
            say(f"curves, round {number + 1} of {bench.plan.curve_rounds}")
            for label in points:
                for name, running in drawn.items():
                    seconds = samples[name][label]
                    if sum(seconds) >= bench.plan.curve_budget:
                        continue
                    seconds.append(_answer_seconds(clients[name], requests[name][label]))
                    if seconds[-1] == _NEVER:
                        _cancel_queries(bench)
                        clients[name] = stack.enter_context(Client(running.address))
    return {name: {label: _middle(values) for label, values in found.items()} for name, found in samples.items()}


def _curve_requests(bench: Bench, running: Running, points: Mapping[str, tuple[str, Place | None]]) -> dict[str, bytes]:
    requests = {}
    for label, (external_id, place) in points.items():
        query = f"?page_size={ORDINARY_CASES}"
        if place is not None:
            query += f"&cursor={running.contestant.cursor(ORGANIZATION, bench.visitor_id(external_id), place)}"
        requests[label] = bench.credentials.request(external_id, query)
    return requests


def _answer_seconds(client: Client, request: bytes) -> float:
    """Return the seconds of an answer, infinity where there is no right one in time."""
    try:
        answer = client.ask(request, timeout=_CURVE_TIMEOUT)
    except NoAnswerError:
        return _NEVER
    right = answer.status == 200 and len(json.loads(answer.body)["results"]) == ORDINARY_CASES  # noqa: PLR2004
    return answer.seconds if right else _NEVER


def _cancel_queries(bench: Bench) -> None:
    """End what a contestant still has the database do for an answer that nobody waits for."""
    bench.connection.execute(
        "select pg_cancel_backend(pid) from pg_stat_activity"
        " where datname = current_database() and state = 'active' and pid <> pg_backend_pid()"
    )


def _middle(values: list[float]) -> float | None:
    found = median(values)
    return None if found == _NEVER else round(found * 1000, 3)


def say(text: str) -> None:
    """Tell on a terminal what is going on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
