"""Measures the service beside its floor and its peers, and says whether it reaches what was promised."""

import argparse
import signal
import sys
from collections.abc import Callable, Container
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg

from benchmarks import answers, measures, report, writes
from benchmarks.contestant import CONTESTANTS, run
from benchmarks.credentials import Credentials
from benchmarks.dataset import FOLDER, Size, database
from benchmarks.measures import Bench, Plan

_LOGS: Final = FOLDER / "run"
_FLOORS: Final = frozenset({"service", "floor", "floor_plain"})
_FULL: Final = Size(4_000_000, 400_000)
_SMALL: Final = Size(200_000, 20_000)
_QUICK: Final = Plan(
    rounds=3,
    seconds=1.0,
    warm_up_seconds=2.0,
    tail_rounds=2,
    tail_slices=4,
    flat_rounds=6,
    curve_rounds=5,
    curve_budget=2.0,
    message_rounds=10,
    import_rounds=6,
    feed_rounds=2,
    feed_slices=3,
    load_rows=20_000,
    load_parts=2,
)


def main() -> None:
    """Make the data, measure, write the results, and exit with 1 where something promised is missed."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if arguments.throughput:
        loads = _measure(_size(arguments), _plan(arguments), measures.throughput, only=_FLOORS)
        sys.stdout.write(report.throughput(loads))
        return
    results = _measure(_size(arguments), _plan(arguments), _results)
    folder = arguments.output or (_LOGS / "quick" if arguments.quick else FOLDER / "results")
    sys.stdout.write(report.write(results, folder))
    missed = report.missed(results)
    for measure in missed:
        sys.stderr.write(f"missed: {measure}\n")
    sys.exit(1 if missed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small data set and short rounds: about five minutes")
    parser.add_argument(
        "--throughput", action="store_true", help="only requests a second beside the floors, printed: ten minutes"
    )
    parser.add_argument("--cases", type=int, help=f"cases in all (default {_FULL.cases:,})")
    parser.add_argument("--heavy", type=int, help=f"cases of a heavy visitor (default {_FULL.heavy:,})")
    parser.add_argument("--rounds", type=int, help=f"rounds of throughput (default {Plan.rounds})")
    parser.add_argument("--seconds", type=float, help=f"seconds of each load (default {Plan.seconds:g})")
    parser.add_argument("--workers", type=int, default=Plan.workers, help="processes of each contestant")
    parser.add_argument("--threads", type=int, default=Plan.threads, help="threads of each process, where it has any")
    parser.add_argument("--output", type=Path, help="folder of the results (default benchmarks/results)")
    return parser.parse_args()


def _size(arguments: argparse.Namespace) -> Size:
    size = _SMALL if arguments.quick else _FULL
    return Size(arguments.cases or size.cases, arguments.heavy or size.heavy)


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = replace(_QUICK if arguments.quick else Plan(), workers=arguments.workers, threads=arguments.threads)
    plan = replace(plan, connections=2 * plan.workers * plan.threads)
    return replace(plan, rounds=arguments.rounds or plan.rounds, seconds=arguments.seconds or plan.seconds)


def _measure(
    size: Size, plan: Plan, measure: Callable[[Bench], dict[str, Any]], *, only: Container[str] | None = None
) -> dict[str, Any]:
    with ExitStack() as stack:
        url = stack.enter_context(database(size))
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        credentials = Credentials.make(connection, url)
        _LOGS.mkdir(exist_ok=True)
        running = {
            contestant.name: stack.enter_context(
                run(
                    contestant,
                    credentials,
                    workers=plan.workers,
                    threads=plan.threads,
                    log=_LOGS / f"{contestant.name}.log",
                )
            )
            for contestant in CONTESTANTS
            if only is None or contestant.name in only
        }
        return measure(Bench(plan, size, running, credentials, connection))


def _results(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": report.machine(bench.connection), "setup": _setup(bench)}
    found["answers"] = {
        name: answers.check(running, bench.credentials, bench.connection) for name, running in bench.running.items()
    }
    found["throughput"] = measures.throughput(bench)
    pages = found["throughput"]["page of 25"]
    best = {name: median(sample["rate"] for sample in pages[name]) for name in bench.running}
    found["tail"] = measures.tail(bench, best)
    found["flatness"] = measures.flatness(bench)
    found["messages"] = measures.message_flatness(bench)
    found["curves"] = measures.curves(bench)
    found["imports"] = writes.imports(bench)
    found["feed"] = writes.feed(bench, best["service"])
    found["loads"] = writes.loads(bench)
    return found


def _setup(bench: Bench) -> dict[str, Any]:
    plan, size = bench.plan, bench.size
    return {
        "cases": f"{size.cases:,}",
        "cases of a heavy visitor": f"{size.heavy:,}",
        "processes x threads": f"{plan.workers} x {plan.threads}",
        "connections": plan.connections,
        "rounds x seconds": f"{plan.rounds} x {plan.seconds:g}, peers in every third",
    }


if __name__ == "__main__":
    main()
