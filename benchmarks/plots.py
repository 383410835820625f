"""Draws bars and lines as SVG by hand, which takes less code than a plotting library has dependencies."""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

_WIDTH: Final = 800
_LEFT: Final = 64
_RIGHT: Final = 240
_TOP: Final = 48
_HEIGHT: Final = 240
_COLOURS: Final = ("#1a7f5a", "#8c8c8c", "#b8b8b8", "#a88f1e", "#c2571a", "#7a4fb5", "#2f6db3")
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#777}.t{font-size:14px;font-weight:600}"
    ".g{stroke:#9995;stroke-width:1}.l{fill:none;stroke-width:2.5}"
)


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return groups of bars on a linear scale, each with its number; names have the same colour in all groups."""
    names = _names(groups.values())
    highest = max(value for group in groups.values() for value in group.values())
    room = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    width = room * 0.9 / len(names)
    parts = []
    for number, (label, group) in enumerate(groups.items()):
        left = _LEFT + room * number
        parts.append(_text(left + room / 2, _TOP + _HEIGHT + 18, label, anchor="middle"))
        for name, value in group.items():
            x, height = left + width * names.index(name), _HEIGHT * value / highest
            colour = _COLOURS[names.index(name)]
            y = _TOP + _HEIGHT - height
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.9:.1f}" height="{height:.1f}" fill="{colour}"/>'
            )
            parts.append(_text(x + width * 0.45, y - 4, f"{value:,.0f}", anchor="middle", size=10))
    return _picture(title, names, parts)


def lines(title: str, curves: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return curves over the same labels on a logarithmic scale; a point that is None is missing."""
    names = list(curves)
    labels = _names(curves.values())
    values = [value for curve in curves.values() for value in curve.values() if value]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(labels) - 1, 1)

    def point(label: str, value: float) -> tuple[float, float]:
        share = (math.log10(value) - low) / (high - low)
        return _LEFT + 20 + step * labels.index(label) * 0.92, _TOP + _HEIGHT * (1 - share)

    parts = [part for power in range(low, high + 1) for part in _grid_line(point(labels[0], 10.0**power)[1], 10**power)]
    parts += [_text(point(label, 1)[0], _TOP + _HEIGHT + 18, label, anchor="middle") for label in labels]
    for name, curve in curves.items():
        points = [point(label, value) for label, value in curve.items() if value]
        colour = _COLOURS[names.index(name)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="l" stroke="{colour}" points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return _picture(title, names, parts)


def _names(groups: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _grid_line(y: float, value: float) -> list[str]:
    line = f'<line class="g" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT + 10}" y2="{y:.1f}"/>'
    return [line, _text(_LEFT - 8, y + 4, f"{value:,g}", anchor="end")]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="font-size:{size}px">{escape(text)}</text>'


def _picture(title: str, names: list[str], parts: list[str]) -> str:
    legend = []
    for number, name in enumerate(names):
        y = _TOP + 14 + 22 * number
        x = _WIDTH - _RIGHT + 24
        legend.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{_COLOURS[number]}"/>')
        legend.append(_text(x + 18, y, name, size=11))
    head = f'<text class="t" x="{_LEFT}" y="24">{escape(title)}</text>'
    body = "\n".join([head, *parts, *legend])
    size = f'viewBox="0 0 {_WIDTH} {_TOP + _HEIGHT + 36}" width="{_WIDTH}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{_STYLE}</style>\n{body}\n</svg>\n'
