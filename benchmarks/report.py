"""Turns what was measured into gates, a table, JSON and plots."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
import psycopg

from benchmarks import plots
from benchmarks.answers import RIGHT
from benchmarks.contestant import CONTESTANTS
from benchmarks.dataset import CONTACTS
from benchmarks.measures import CHANGE, MESSAGES, NOT_MODIFIED, PAGES, TAIL_SHARE
from benchmarks.writes import FED, FEED_SHARE, IMPORTED

Rounds = list[dict[str, Any]]
Results = dict[str, Any]

TITLES: Final = {contestant.name: contestant.title for contestant in CONTESTANTS} | {
    "postgres": "the page query alone (pgbench)"
}
_FLAT: Final = dict(zip(CONTACTS, (1.5, 1.5, 3.0), strict=True))
_FIGURES: Final = {
    "rate": "requests/s",
    "cpu_ms": "workers' CPU of a request",
    "postgres_cpu_ms": "PostgreSQL's CPU of a request",
}
_WANTED_OF_FLOOR_PLAIN: Final = 0.85
_FED_AT_LEAST: Final = 0.9
_NOTHING: Final = "none"
_PACKAGES: Final = ("flask", "gunicorn", "psycopg", "msgspec", "fastapi", "sqlalchemy", "pydantic", "uvicorn")
_PACKAGES_OF_DRF: Final = ("django", "djangorestframework")


@dataclass(frozen=True)
class Ratio:
    """One measure. `bound` is None where nothing is promised, `reached` where there is no bound or no value."""

    measure: str
    value: float | None
    lowest: float | None
    highest: float | None
    bound: float | None
    at_least: bool
    gated: bool

    @property
    def reached(self) -> bool | None:
        """Whether it keeps its bound."""
        if self.value is None or self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def ratios(results: Results) -> list[Ratio]:
    """Return all promised measures."""
    loads = results["throughput"]
    found = [paired(f"requests/s, {kind}, service : floor", loads[kind], "floor", 0.85) for kind in (*PAGES, MESSAGES)]
    found.append(paired(f"requests/s, {CHANGE}, service : floor", loads[CHANGE], "floor", 0.8))
    found += [_to_floor_plain(loads, kind, figure) for figure in _FIGURES for kind in PAGES[:2]]
    found += [
        paired(f"requests/s, {kind}, service : in read committed", loads[kind], "read_committed", None, gated=False)
        for kind in PAGES[:2]
    ]
    for name, bound in (("postgres_json", None), ("fastapi", 6.0), ("drf", 8.0)):
        title = TITLES[name]
        found += [
            paired(f"requests/s, {kind}, service : {title}", loads[kind], name, bound, gated=False)
            for kind in PAGES[:2]
        ]
    both = {"service": loads[NOT_MODIFIED].get("service", []), "200": loads["page of 25"].get("service", [])}
    found.append(paired("requests/s, 304 : 200, page of 25", both, "200", 1.2))
    share = f"{TAIL_SHARE:.0%}".replace("%", " %")
    name = f"p99 latency at {share} of the own best throughput, service : floor"
    found.append(paired(name, results["tail"], "floor", 1.3, figure="p99_ms", at_least=False))
    for contacts, bound in _FLAT.items():
        pages = results["flatness"]["visitors"][str(contacts)]
        values = [page["ratio"] for page in pages.values()]
        measure = f"page of 25, visitor of {contacts} contacts, worst of {len(values)} : ordinary visitor"
        found.append(Ratio(measure, max(values), min(values), max(values), bound, at_least=False, gated=True))
    return [*found, *_of_messages(results["messages"]), *_of_writes(results)]


def _to_floor_plain(loads: dict[str, dict[str, Rounds]], kind: str, figure: str) -> Ratio:
    name = f"{_FIGURES[figure]}, {kind}, service : floor-plain"
    bound = _WANTED_OF_FLOOR_PLAIN if figure == "rate" else None
    return paired(name, loads[kind], "floor_plain", bound, figure=figure, gated=False)


def _of_messages(found: dict[str, Any]) -> list[Ratio]:
    values = [page["ratio"] for page in found["pages"].values()]
    measure = f"page of 25 messages, case with 100,000, worst of {len(values)} : case with 30"
    return [Ratio(measure, max(values), min(values), max(values), 1.3, at_least=False, gated=True)]


def _of_writes(results: Results) -> list[Ratio]:
    samples = results["imports"]["samples"]
    seconds = [sample["import_ms"] / 1000 for sample in samples]
    times = [sample["import_ms"] / sample["upsert_ms"] for sample in samples]
    feed = results["feed"]
    other = {sample["round"]: sample["p99_ms"] for sample in feed["without"]}
    slower = [sample["p99_ms"] / other[sample["round"]] for sample in feed["with"]]
    shares = [part["copy_s"] / part["load_s"] for part in results["loads"]]
    among = f"{IMPORTED} changed cases among {results['imports']['cases']:,}"
    return [
        _spread(f"{among} by import, seconds", seconds, 0.3, at_least=False),
        _spread(f"{among}, import : upsert by psycopg", times, None, at_least=False, gated=False),
        _spread(f"p99 latency of a page, beside a feed of {FED} cases a second : without", slower, 1.5, at_least=False),
        _spread("rows a second, load : psql's \\copy", shares, 0.5, at_least=True),
    ]


def _spread(measure: str, values: list[float], bound: float | None, *, at_least: bool, gated: bool = True) -> Ratio:
    """Return the median of some values, with the quarters below and above."""
    if not values:
        return Ratio(measure, None, None, None, bound, at_least, gated)
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return Ratio(measure, round(median(values), 3), round(low, 3), round(high, 3), bound, at_least, gated)


def paired(
    measure: str,
    rounds: dict[str, Rounds],
    other: str,
    bound: float | None,
    *,
    figure: str = "rate",
    at_least: bool = True,
    gated: bool = True,
) -> Ratio:
    """Return the median of the ratios of the service to another contestant within the rounds that both were in."""
    theirs = {sample["round"]: sample.get(figure) for sample in rounds.get(other, [])}
    values = [
        sample[figure] / theirs[sample["round"]]
        for sample in rounds.get("service", [])
        if sample.get(figure) is not None and theirs.get(sample["round"])
    ]
    return _spread(measure, values, bound, at_least=at_least, gated=gated)


def throughput(loads: dict[str, dict[str, Rounds]]) -> str:
    """Return the service's requests a second and CPU times to those of the floors, a line each."""
    found = [
        paired(f"{title}, {kind}, service : {TITLES[name]}", rounds, name, None, figure=figure, gated=False)
        for kind, rounds in loads.items()
        for name in ("floor", "floor_plain")
        if name in rounds
        for figure, title in _FIGURES.items()
    ]
    return "".join(f"{ratio.measure}: {ratio.value}\n" for ratio in found)


def missed(results: Results) -> list[str]:
    """Return what makes the run a failure: a gate that is missed, or a wrong answer of the service or the floor."""
    found = [ratio.measure for ratio in ratios(results) if ratio.gated and ratio.reached is not True]
    fed = median(sample["fed"] for sample in results["feed"]["with"])
    if fed < _FED_AT_LEAST * FED:
        found.append(f"the feed wrote {fed:,.0f} cases a second and not {FED}")
    for name in ("service", "floor"):
        wrong = {kind: outcome for kind, outcome in results["answers"][name].items() if outcome != RIGHT}
        found += [f"{name}, {kind}: {outcome}" for kind, outcome in wrong.items()]
    return found


def machine(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return what the figures depend on."""
    row = connection.execute("show server_version").fetchone()
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": str((row or ("",))[0]).split(" ", maxsplit=1)[0],
        **{name: version(name) for name in (*_PACKAGES, *_PACKAGES_OF_DRF)},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write(results: Results, folder: Path) -> str:
    """Write everything into a folder, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    promised = ratios(results)
    document = {**results, "ratios": [{**asdict(ratio), "reached": ratio.reached} for ratio in promised]}
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    tables = markdown(results, promised)
    (folder / "results.md").write_text(tables, encoding="utf-8")
    for name, picture in _plots(results).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    return tables


def markdown(results: Results, promised: list[Ratio]) -> str:
    """Return the tables."""
    parts = [
        "# Results",
        "Written by `make bench`. Ratios matter; absolute figures are those of the machine below, and drift.",
        table(("", ""), [(name, value) for name, value in {**results["machine"], **results["setup"]}.items()]),
        "## What was promised",
        "Medians, with the quarters of the rounds below and above; for flatness the least and the greatest.",
        table(("measure", "median", "spread", "bound", ""), [_ratio_row(ratio) for ratio in promised]),
        "## Throughput",
        *(part for kind, loads in results["throughput"].items() for part in (f"### {kind}", _loads(loads))),
        f"## Latency at {TAIL_SHARE:.0%} of the own best throughput, page of 25".replace("%", " %"),
        _loads(results["tail"], asked=True),
        "## Flatness",
        f"An ordinary visitor's page of 25: {results['flatness']['ordinary_ms']:.2f} ms, one request at a time.",
        _flatness(results["flatness"]),
        "## Messages",
        f"A page of 25 of 30 messages: {results['messages']['short_ms']:.2f} ms, one request at a time. Of 100,000:",
        _messages(results["messages"]),
        f"## A page of 25 beside a feed of {FED} cases a second, at {FEED_SHARE:.0%} of the best throughput",
        _feed(results["feed"]),
        "## Writing",
        _writing(results),
        "## Curves",
        "Milliseconds of a page of 25, one request at a time; none: no right answer within ten seconds.",
        *(part for name, curve in results["curves"].items() for part in (f"### by {name}", _curve(curve))),
        "## Right answers",
        "Compared with the plainest SQL, case by case and field by field.",
        _answers(results["answers"]),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table of Markdown."""
    names = [str(cell) for cell in head]
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio_row(ratio: Ratio) -> tuple[str, ...]:
    bound = _NOTHING if ratio.bound is None else f"{ratio.bound:g} or {'more' if ratio.at_least else 'less'}"
    if ratio.value is None:
        return (ratio.measure, _NOTHING, _NOTHING, bound, "not measured")
    verdict = {True: "reached", False: "missed" if ratio.gated else "not reached", None: ""}[ratio.reached]
    spread = f"{ratio.lowest:.2f} to {ratio.highest:.2f}"
    return (ratio.measure, f"{ratio.value:.2f}", spread, bound, verdict)


def _loads(loads: dict[str, Rounds], *, asked: bool = False) -> str:
    figure = "asked/s" if asked else "requests/s"
    head = ("", figure, "spread", "p50 ms", "p90 ms", "p99 ms", "CPU ms", "PostgreSQL's CPU ms", "errors")
    return table(head, [_load_row(name, rounds, "asked" if asked else "rate") for name, rounds in loads.items()])


def _load_row(name: str, rounds: Rounds, figure: str) -> tuple[str, ...]:
    rates = sorted(sample[figure] for sample in rounds)
    times = (_median(rounds, key, 2) for key in ("p50_ms", "p90_ms", "p99_ms", "cpu_ms", "postgres_cpu_ms"))
    errors = sum(sample["errors"] for sample in rounds)
    return (TITLES[name], f"{median(rates):,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}", *times, f"{errors:,}")


def _median(rounds: Rounds, key: str, decimals: int) -> str:
    values = [sample[key] for sample in rounds if sample.get(key) is not None]
    return f"{median(values):,.{decimals}f}" if values else _NOTHING


def _flatness(flatness: dict[str, Any]) -> str:
    rows = []
    for contacts, pages in flatness["visitors"].items():
        ordered = sorted(pages.items(), key=lambda item: item[1]["ratio"])
        middle, (name, worst) = median(page["ratio"] for page in pages.values()), ordered[-1]
        rows.append((contacts, len(pages), f"{middle:.2f}", f"{worst['ratio']:.2f}", f"{worst['ms']:.2f}", f"`{name}`"))
    return table(("contacts", "pages", "median ratio", "worst ratio", "worst ms", "worst page"), rows)


def _messages(found: dict[str, Any]) -> str:
    rows = [(f"`{name}`", f"{page['ms']:.2f}", f"{page['ratio']:.2f}") for name, page in found["pages"].items()]
    return table(("page", "ms", "ratio"), rows)


def _feed(feed: dict[str, Rounds]) -> str:
    head = ("feed", "cases/s written", "asked/s", "p50 ms", "p90 ms", "p99 ms", "CPU ms", "errors")
    figures = (("fed", 0), ("asked", 0), ("p50_ms", 2), ("p90_ms", 2), ("p99_ms", 2), ("cpu_ms", 2))
    rows = [
        (name, *(_median(rounds, *figure) for figure in figures), f"{sum(sample['errors'] for sample in rounds):,}")
        for name, rounds in feed.items()
    ]
    return table(head, rows)


def _writing(results: Results) -> str:
    samples, loads = results["imports"]["samples"], results["loads"]
    rows = [
        (f"{IMPORTED} changed cases, import", f"{_median(samples, 'import_ms', 0)} ms"),
        (f"{IMPORTED} changed cases, upsert by psycopg", f"{_median(samples, 'upsert_ms', 0)} ms"),
    ]
    if loads:
        cases = sum(part["rows"] for part in loads)
        rows += [
            (f"{cases:,} cases, {title}", f"{sum(part[name] for part in loads):,.1f} s")
            for name, title in (("load_s", "`load`"), ("copy_s", "psql's `\\copy`"))
        ]
    return table(("", ""), rows)


def _curve(curve: dict[str, dict[str, float | None]]) -> str:
    labels = list(next(iter(curve.values())))
    rows = [
        (TITLES[name], *(_NOTHING if points[label] is None else f"{points[label]:,.1f}" for label in labels))
        for name, points in curve.items()
    ]
    return table(("", *labels), rows)


def _answers(answers: dict[str, dict[str, str]]) -> str:
    kinds = list(answers["service"])
    rows = [(TITLES[name], *(found.get(kind, "") for kind in kinds)) for name, found in answers.items()]
    return table(("", *kinds), rows)


def _plots(results: Results) -> dict[str, str]:
    rates = {
        kind: {
            TITLES[name]: median(sample["rate"] for sample in rounds)
            for name, rounds in results["throughput"][kind].items()
            if name != "read_committed"
        }
        for kind in PAGES
    }
    pictures = {"throughput": plots.bars("Requests a second, more is better", rates)}
    axes = {"depth": "depth of the page in 400,000 cases", "cases": "cases of the visitor", "contacts": "contacts"}
    axes["depth"] = f"depth of the page in {results['setup']['cases of a heavy visitor']} cases"
    for name, curve in results["curves"].items():
        named = {TITLES[contestant]: points for contestant, points in curve.items()}
        pictures[f"latency-{name}"] = plots.lines(f"A page of 25 by {axes[name]}, milliseconds, less is better", named)
    return pictures
