"""Measures what row security costs: the service as the role that it binds, beside itself as a superuser, over HTTP.

Both are started once and asked in turn, round by round; a ratio is that of the two within one round. Prints the
medians, and ends with 1 where one of them is under what was promised, or anything but a page was answered.
"""

import argparse
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any, Final

import psycopg

from benchmarks.contestant import CONTESTANTS, run
from benchmarks.credentials import Credentials
from benchmarks.dataset import FOLDER, Size, database
from benchmarks.measures import PAGES, Bench, Plan, full_load, requests_of, warm_up
from benchmarks.report import Ratio, Rounds, paired, table
from cases_service.database.statements import statements

_LOGS: Final = FOLDER / "run"
_BOUND: Final = 0.9
_SUPERUSER: Final = "superuser"
_KINDS: Final = PAGES[:2]
_IS_BOUND: Final = statements("session")["is_bound_by_row_security"]


def main() -> None:
    """Run, print the table, and exit with 1 where row security costs more than a tenth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.row_security", description=__doc__)
    parser.add_argument("--cases", type=int, default=4_000_000, help="cases in all")
    parser.add_argument("--heavy", type=int, default=400_000, help="cases of each heavy visitor, who is not asked for")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="seconds of each load")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    plan = Plan(rounds=arguments.rounds, seconds=arguments.seconds, peers_every=1)
    found = _measure(Size(arguments.cases, arguments.heavy), plan)
    ratios = [paired(f"requests/s, {kind}", found[kind], _SUPERUSER, _BOUND) for kind in _KINDS]
    head = ("", "bound by row security", "superuser", "median of the ratios", "quarters", "errors")
    rows = [_row(ratio, found[kind]) for ratio, kind in zip(ratios, _KINDS, strict=True)]
    sys.stdout.write(f"{table(head, rows)}\n")
    sys.exit(0 if all(ratio.reached for ratio in ratios) and not _errors(*found.values()) else 1)


def _measure(size: Size, plan: Plan) -> dict[str, dict[str, Rounds]]:
    """Return the loads of each kind of page, by role, round by round."""
    bound = CONTESTANTS[0]
    found: dict[str, dict[str, Rounds]] = {kind: {bound.name: [], _SUPERUSER: []} for kind in _KINDS}
    with ExitStack() as stack:
        url = stack.enter_context(database(size))
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        if connection.execute(_IS_BOUND).fetchone() != (False,):
            sys.exit("DATABASE_URL: expected a superuser, whom row security does not bind")
        credentials = Credentials.make(connection, url)
        _LOGS.mkdir(exist_ok=True)
        running = {}
        for contestant in (bound, replace(bound, name=_SUPERUSER, serves=False)):
            log = _LOGS / f"row_security_{contestant.name}.log"
            started = run(contestant, credentials, workers=plan.workers, threads=plan.threads, log=log)
            running[contestant.name] = stack.enter_context(started)
        bench = Bench(plan, size, running, credentials, connection)
        requests = {kind: requests_of(bench, kind) for kind in _KINDS}
        warm_up(bench, requests)
        for number, order in bench.turns(plan.rounds):
            for kind in _KINDS:
                for one in order:
                    sample: dict[str, Any] = {"round": number, **full_load(bench, one, requests[kind])}
                    found[kind][one.contestant.name].append(sample)
    return found


def _row(ratio: Ratio, loads: dict[str, Rounds]) -> tuple[str, ...]:
    rates = (f"{median(sample['rate'] for sample in rounds):,.0f}" for rounds in loads.values())
    return (ratio.measure, *rates, f"{ratio.value}", f"{ratio.lowest} to {ratio.highest}", str(_errors(loads)))


def _errors(*loads: dict[str, Rounds]) -> int:
    return sum(sample["errors"] for load in loads for rounds in load.values() for sample in rounds)


if __name__ == "__main__":
    main()
