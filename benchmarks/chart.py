"""Draw a chart as SVG: seconds over a number, both on logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

#: Values over numbers, and their name.
Lines = Mapping[str, Sequence[tuple[float, float]]]

_WIDTH, _HEIGHT = 360, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 40, 50
_COLOURS = ("#b45309", "#6b7280", "#0369a1", "#15803d")


def chart(panels: Mapping[str, Lines], across: str, up: str) -> str:
    """
    Return an SVG with a panel for each set of lines, all on the same scales.

    :param panels: by their titles.
    :param across: what the horizontal axis shows.
    :param up: what the vertical axis shows.
    """
    points = [point for lines in panels.values() for line in lines.values() for point in line]
    scales = _Scale([x for x, _ in points]), _Scale([y for _, y in points])
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    width, height = _WIDTH * len(panels), _HEIGHT + 20 * len(names) + 10
    view = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#374151"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (title, lines) in enumerate(panels.items()):
        parts.append(f'<g transform="translate({number * _WIDTH} 0)">')
        parts += _panel(title, lines, names, scales, across, up)
        parts.append("</g>")
    for number, name in enumerate(names):
        y = _HEIGHT + 20 * number + 6
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="20" height="4" fill="{_COLOURS[number]}"/>')
        parts.append(f'<text x="{_LEFT + 28}" y="{y + 6}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Scale:
    """Decades, from the one below the least value to the one above the greatest."""

    def __init__(self, values: Sequence[float]) -> None:
        self.first = math.floor(math.log10(min(values)))
        self.last = max(self.first + 1, math.ceil(math.log10(max(values))))

    def share(self, value: float) -> float:
        return (math.log10(value) - self.first) / (self.last - self.first)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.first, self.last + 1)]


def _panel(
    title: str, lines: Lines, names: Sequence[str], scales: tuple[_Scale, _Scale], across: str, up: str
) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + scales[0].share(x) * (right - _LEFT), 1),
            round(bottom - scales[1].share(y) * (bottom - _TOP), 1),
        )

    parts = [f'<text x="{_LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>']
    for tick in scales[0].ticks():
        x = place(tick, scales[1].ticks()[0])[0]
        parts.append(f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:,g}</text>')
    for tick in scales[1].ticks():
        y = place(scales[0].ticks()[0], tick)[1]
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(across)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(up)}</text>'
    )
    for name, line in lines.items():
        colour, placed = _COLOURS[names.index(name)], [place(x, y) for x, y in line]
        drawn = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in placed]
    return parts
