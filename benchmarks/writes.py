"""What is measured of writing: imports, what a feed costs those who read, and loading a whole organization."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from psycopg import sql

from benchmarks.dataset import (
    FOLDER,
    ORGANIZATION,
    STATEMENTS,
    load_statements,
    scratch_database,
    writer_url,
    written_cases,
)
from benchmarks.load import Client, Loaded, open_loop
from benchmarks.measures import Bench, requests_of, sample_of, say
from benchmarks.pgbench import program

IMPORTED: Final = 100
"""How many cases an import has."""

FED: Final = 500
"""How many cases a second the feed brings."""

FEED_SHARE: Final = 0.3
"""The share of the best throughput at which pages are asked for while the feed writes."""

_PLAIN: Final = load_statements("plain")
_NDJSON: Final = "application/x-ndjson"
_BODIES: Final = 240
_BEHIND_PATCHES: Final = 50_000
_WAIT_SECONDS: Final = 30.0
_REFERRED: Final = ("organizations", "users", "case_funnel_stages", "visitors", "contacts")

Line = dict[str, Any]


class FeedError(Exception):
    """The feed has ended. The message says why."""


def imports(bench: Bench) -> dict[str, Any]:
    """Return milliseconds of imports of a hundred changed cases, beside those of an upsert of them by hand.

    The upsert is one transaction by psycopg's `executemany`, in the role of the service's writer. Both get the same
    cases in turn, changed each time.
    """
    samples: list[dict[str, float]] = []
    with (
        Client(bench.running["service"].address) as client,
        psycopg.connect(
            writer_url(bench.credentials.database_url), options=f"-c cases.organization_id={ORGANIZATION}"
        ) as connection,
    ):
        for number in range(bench.plan.import_rounds + 2):
            say(f"imports, round {number + 1} of {bench.plan.import_rounds + 2}")
            lines = _lines(bench, written_cases(_BEHIND_PATCHES + number * IMPORTED, IMPORTED))
            imported = _import(client, _request(bench, _changed(lines, next(bench.changes))))
            upserted = _upsert(connection, _changed(lines, next(bench.changes)))
            if number > 1:
                samples.append({"import_ms": round(imported * 1000, 2), "upsert_ms": round(upserted * 1000, 2)})
    return {"cases": bench.size.cases, "samples": samples}


def _lines(bench: Bench, case_ids: Sequence[UUID]) -> list[Line]:
    rows = bench.connection.execute(
        STATEMENTS["list_lines"], {"organization_id": ORGANIZATION, "case_ids": list(case_ids)}
    ).fetchall()
    return [row[0] for row in rows]


def _changed(lines: Sequence[Line], number: int) -> list[Line]:
    return [line | {"subject": f"Imported as the {number}th"} for line in lines]


def _request(bench: Bench, lines: Sequence[Line]) -> bytes:
    body = b"".join(msgspec.json.encode({"type": "case"} | line) + b"\n" for line in lines)
    return bench.credentials.write("POST", "/import", body, media_type=_NDJSON)


def _import(client: Client, request: bytes) -> float:
    """Import, and return how many seconds it took."""
    answer = client.ask(request)
    written = msgspec.json.decode(answer.body)["written"] if answer.status == 200 else {}  # noqa: PLR2004
    if written.get("case") != IMPORTED:
        raise RuntimeError(f"{answer.status} for an import: {answer.body[:300]!r}")
    return answer.seconds


def _upsert(connection: psycopg.Connection[Any], lines: Sequence[Line]) -> float:
    started = time.perf_counter()
    with connection.transaction():
        connection.cursor().executemany(_PLAIN["upsert_case"], lines)
    return time.perf_counter() - started


def feed(bench: Bench, best: float) -> dict[str, list[dict[str, Any]]]:
    """Return latencies of the service's pages of 25 with a feed of changed cases beside them, and without.

    Both are asked for at the same fixed rate, slice by slice in turn. The feed is a process of its own, which waits for
    the answer to an import before it sends the next.
    """
    plan, running = bench.plan, bench.running["service"]
    requests, rate = requests_of(bench, "page of 25"), best * FEED_SHARE
    found: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    with _feeding(bench) as writer:
        for number in range(plan.feed_rounds):
            say(f"pages beside a feed, round {number + 1} of {plan.feed_rounds}")
            loads = {name: _Load(Loaded(0.0)) for name in found}
            with running.clients(plan.connections, plan.workers, requests[0]) as clients:
                open_loop(clients, requests, seconds=plan.feed_slice_seconds, rate=rate)
                for _ in range(plan.feed_slices):
                    for name, load in loads.items():
                        cpu, begin = running.cpu(), len(load.loaded.latencies) % len(requests)
                        turned = [*requests[begin:], *requests[:begin]]
                        with writer.writing(is_on=name == "with") as written:
                            load.loaded.add(open_loop(clients, turned, seconds=plan.feed_slice_seconds, rate=rate))
                        load.cpu += running.cpu() - cpu
                        load.written += written.cases
            for name, load in loads.items():
                fed = round(load.written / load.loaded.seconds, 1)
                sample = sample_of(load.loaded, load.cpu)
                found[name].append({"round": number, "asked": round(rate, 1), "fed": fed, **sample})
    return found


@dataclass
class _Load:
    loaded: Loaded
    cpu: float = 0.0
    written: int = 0


@dataclass
class _Written:
    cases: int = 0


class _Writer:
    """The process that feeds, as this one sees it."""

    def __init__(self, requests: Sequence[bytes], address: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._commands, self._answers = context.Queue(), context.Queue()
        arguments = (address, requests, IMPORTED / FED, self._commands, self._answers)
        self._process = context.Process(target=_feed, args=arguments, daemon=True)
        self._process.start()
        self._answer()

    def end(self) -> None:
        """End the process."""
        self._commands.put("end")
        self._process.join(_WAIT_SECONDS)

    @contextmanager
    def writing(self, *, is_on: bool) -> Iterator[_Written]:
        """Let it write meanwhile, and tell at the end how many cases it has written."""
        written = _Written()
        if not is_on:
            yield written
            return
        self._commands.put("write")
        yield written
        self._commands.put("rest")
        written.cases = self._answer() * IMPORTED

    def _answer(self) -> int:
        answer = self._answers.get(timeout=_WAIT_SECONDS)
        if isinstance(answer, str):
            raise FeedError(answer)
        return int(answer)


@contextmanager
def _feeding(bench: Bench) -> Iterator[_Writer]:
    case_ids = written_cases(_BEHIND_PATCHES, IMPORTED * 40)
    lines = _lines(bench, case_ids)
    parts = [lines[first : first + IMPORTED] for first in range(0, len(lines), IMPORTED)]
    # More texts than parts, so that a part that comes again says something else.
    bodies = [_changed(parts[number % len(parts)], next(bench.changes)) for number in range(_BODIES)]
    writer = _Writer([_request(bench, body) for body in bodies], bench.running["service"].address)
    try:
        yield writer
    finally:
        writer.end()


def _feed(address: str, requests: Sequence[bytes], pause: float, commands: Any, answers: Any) -> None:
    """Send imports at even intervals between the words `write` and `rest`, and answer how many; until `end`."""
    sent, place, due = 0, 0, 0.0
    is_writing = False
    with Client(address) as client:
        answers.put(0)
        while True:
            try:
                wait = max(due - time.perf_counter(), 0.0) if is_writing else None
                command = commands.get(timeout=wait)
            except Empty:
                command = None
            if command == "end":
                return
            if command == "write":
                # In the middle of the first pause, so that a whole number of pauses has as many imports.
                is_writing, sent, due = True, 0, time.perf_counter() + pause / 2
            elif command == "rest":
                is_writing = False
                answers.put(sent)
            elif is_writing:
                try:
                    _import(client, requests[place % len(requests)])
                except RuntimeError as error:
                    answers.put(str(error))
                    return
                sent, place, due = sent + 1, place + 1, due + pause


def loads(bench: Bench) -> list[dict[str, Any]]:
    """Return seconds of `load` for the cases of the data set, beside those of psql's copy of the same rows.

    Each fills an empty database with all its constraints and indexes, in parts and in turn. What the cases refer to is
    there before. `load` is the whole command, with Python's start and the planner's statistics.
    """
    psql = program("psql")
    if psql is None:
        return []
    found = []
    url, plan = bench.credentials.database_url, bench.plan
    with (
        TemporaryDirectory(dir=FOLDER / "run") as directory,
        scratch_database(url, "cases_benchmark_loaded") as loaded,
        scratch_database(url, "cases_benchmark_copied") as copied,
    ):
        say("loading: what cases refer to")
        for target in (loaded, copied):
            _copy_referred(url, target)
        names = list(_files(bench, Path(directory), rows=plan.load_rows // plan.load_parts, parts=plan.load_parts))
        for number, (lines, text) in enumerate(names):
            say(f"loading, part {number + 1} of {plan.load_parts}")
            turns = (("load_s", _load_file, loaded, lines), ("copy_s", _copy_file, copied, text))
            taken = {
                name: round(way(target, file, psql), 3)
                for name, way, target, file in (turns if number % 2 == 0 else reversed(turns))
            }
            found.append({"rows": plan.load_rows // plan.load_parts, **taken})
        if _count(loaded) != _count(copied):
            raise RuntimeError("other rows are loaded than are copied")
    return found


def _copy_referred(source: str, target: str) -> None:
    with psycopg.connect(source, autocommit=True) as one, psycopg.connect(target, autocommit=True) as other:
        for table in _REFERRED:
            columns = sql.SQL(", ").join(
                sql.Identifier(row[0]) for row in one.execute(STATEMENTS["list_columns"], {"name": table}).fetchall()
            )
            name = sql.Identifier(table)
            with (
                one.cursor().copy(sql.SQL("copy (select {} from {}) to stdout").format(columns, name)) as out,
                other.cursor().copy(sql.SQL("copy {} ({}) from stdin").format(name, columns)) as into,
            ):
                for data in out:
                    into.write(data)
        other.execute("vacuum (analyze)")
        other.execute("checkpoint")


def _files(bench: Bench, folder: Path, *, rows: int, parts: int) -> Iterator[tuple[Path, Path]]:
    """Write the cases as lines for `load` and as text to copy, and give the names of the files of each part."""
    url = bench.credentials.database_url
    with psycopg.connect(url) as one, psycopg.connect(url) as other, one.cursor("lines") as lines:
        lines.itersize = 5_000
        lines.execute(STATEMENTS["list_all_lines"], {"organization_id": ORGANIZATION, "number": rows * parts})
        columns = sql.SQL(", ").join(map(sql.Identifier, _columns(url)))
        cases = sql.SQL("select {} from cases where organization_id = {} order by created_at, id limit {}").format(
            columns, sql.Literal(str(ORGANIZATION)), sql.Literal(rows * parts)
        )
        with other.cursor().copy(sql.SQL("copy ({}) to stdout").format(cases)) as copy:
            texts = iter(copy)
            for part in range(parts):
                names = folder / f"{part}.ndjson", folder / f"{part}.txt"
                with names[0].open("wb") as file, names[1].open("wb") as text:
                    for line, data in zip(islice(lines, rows), texts, strict=False):
                        file.write(line[0].encode() + b"\n")
                        text.write(data)
                yield names
            for _ in texts:
                raise AssertionError("there are no more cases than lines")


def _load_file(url: str, file: Path, _psql: str) -> float:
    command = (str(Path(sys.executable).with_name("cases-service")), "load", str(file))
    return _seconds(command, {"DATABASE_URL": url})


def _copy_file(url: str, file: Path, psql: str) -> float:
    columns = ", ".join(_columns(url))
    command = (psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", rf"\copy cases ({columns}) from '{file}'", url)
    return _seconds(command, {})


def _seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - started


def _columns(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(STATEMENTS["list_columns"], {"name": "cases"}).fetchall()]


def _count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from cases").fetchone()
    return int((row or (0,))[0])
