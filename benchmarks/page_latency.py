"""Measures pages of heavy visitors against that of an ordinary one, over HTTP: the flatness alone, filter by filter.

Asks the service, as it is deployed, for the pages of `measures.flatness` in turn, one at a time over one connection,
and prints the worst median of each filter over all orderings, depths and directions, in milliseconds, and its ratio.
"""

import argparse
import re
import signal
import sys
from contextlib import ExitStack
from typing import Any, Final

import psycopg

from benchmarks.contestant import CONTESTANTS, run
from benchmarks.credentials import Credentials
from benchmarks.dataset import FOLDER, Size, database
from benchmarks.measures import Bench, Plan, flatness

_LOGS: Final = FOLDER / "run"


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_latency", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_400_000, help="cases in all")
    parser.add_argument("--heavy", type=int, default=400_000, help="cases of each heavy visitor")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    size, plan = Size(arguments.cases, arguments.heavy), Plan(flat_rounds=arguments.rounds)
    with ExitStack() as stack:
        url = stack.enter_context(database(size))
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        credentials = Credentials.make(connection, url)
        _LOGS.mkdir(exist_ok=True)
        service = run(CONTESTANTS[0], credentials, workers=1, threads=plan.threads, log=_LOGS / "page_latency.log")
        running = {"service": stack.enter_context(service)}
        found = flatness(Bench(plan, size, running, credentials, connection))
    sys.stdout.write(_table(found))


def _table(found: dict[str, Any]) -> str:
    lines = [f"An ordinary visitor's page of 25: {found['ordinary_ms']:.2f} ms.", ""]
    lines.append("| filter | " + " | ".join(f"{contacts} contacts" for contacts in found["visitors"]) + " |")
    lines.append("|---" * (len(found["visitors"]) + 1) + "|")
    worst: dict[str, dict[str, dict[str, float]]] = {}
    for contacts, pages in found["visitors"].items():
        for name, page in pages.items():
            of_filter = worst.setdefault(_filter(name), {})
            of_filter[contacts] = max(of_filter.get(contacts, page), page, key=lambda page: page["ratio"])
    for name, by_contacts in worst.items():
        cells = (f"{page['ms']:.2f} ms, {page['ratio']:.2f}" for page in by_contacts.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _filter(page: str) -> str:
    """Return the filter of a page without the times in it."""
    _, _, wanted = page.partition(", ")[2].partition(", ")
    named = re.sub(r"(_since|_until)=.*", r"\1", wanted)
    return f"`{named}`" if wanted else "none"


if __name__ == "__main__":
    main()
