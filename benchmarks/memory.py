"""Measures whether a worker grows: its resident memory after a million requests beside that after a thousand."""

import argparse
import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psycopg

from benchmarks.contestant import CONTESTANTS, Running, run
from benchmarks.credentials import Credentials
from benchmarks.dataset import CONTACTS, FOLDER, Connection, Size, database, heavy_visitor, places
from benchmarks.load import Client, ask_many

BOUND: Final = 1.05
_FIRST: Final = 1_000
_VISITORS: Final = 2_000
_STEPS: Final = 20
_QUERIES: Final = (
    "?page_size=10",
    "?page_size=25",
    "?page_size=25&is_closed=true",
    "?page_size=25&ordering=-updated_at",
    "?fields=id,case_number,status",
    "?page_size=10&priority=1,2&ordering=-created_at",
    "/summary",
    "/summary?status=Open",
    "?page_size=0",
    "/no-such-case",
)


def main() -> None:
    """Load one worker, write what it takes, and exit with 1 where it has grown by more than is allowed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="default 1,000,000: more than half an hour")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "memory.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    memory = _measure(arguments.requests)
    ratio = round(memory[str(arguments.requests)] / memory[str(_FIRST)], 3)
    found = {"requests": arguments.requests, "ratio": ratio, "bound": BOUND, "bytes_after": memory}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"resident memory of a worker after {arguments.requests:,} requests : {_FIRST:,} = {ratio:.3f}\n")
    sys.exit(0 if ratio <= BOUND else 1)


def _measure(number: int) -> dict[str, int]:
    """Return the bytes of the one worker after so many requests, by their number."""
    with ExitStack() as stack:
        url = stack.enter_context(database(Size(200_000, 20_000)))
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        credentials = Credentials.make(connection, url)
        requests = _requests(credentials, connection)
        running = stack.enter_context(run(CONTESTANTS[0], credentials, workers=1, threads=4, log=_log()))
        clients = [stack.enter_context(Client(running.address)) for _ in range(8)]
        memory: dict[str, int] = {}
        done = 0
        for mark in sorted({_FIRST, *(number * step // _STEPS for step in range(1, _STEPS + 1))}):
            # From a place further on, so that every request comes round.
            start = done % len(requests)
            ask_many(clients, requests[start:] + requests[:start], mark - done)
            done, memory[str(mark)] = mark, _resident(running)
            sys.stderr.write(f"{mark:>9,} requests: {memory[str(mark)] / 2**20:.1f} MiB\n")
        return memory


def _log() -> Path:
    folder = FOLDER / "run"
    folder.mkdir(exist_ok=True)
    return folder / "memory.log"


def _requests(credentials: Credentials, connection: Connection) -> list[bytes]:
    """Return requests of all kinds, refused ones too, for many visitors."""
    names = [*(f"ordinary-{number}" for number in range(1, _VISITORS + 1)), *map(heavy_visitor, CONTACTS)]
    requests = []
    for number, name in enumerate(names):
        path = credentials.path(name)
        requests += [credentials.request_for(path + query, etag='W/"another"') for query in _QUERIES]
        if number % 10 == 0:
            case_id = places(connection, name, "created_at", [0])[0][1]
            requests.append(credentials.request_for(f"{path}/{case_id}"))
    return requests


def _resident(running: Running) -> int:
    """Return the resident memory of the worker in bytes."""
    return int(running.tree()[-1].memory_info().rss)


if __name__ == "__main__":
    main()
