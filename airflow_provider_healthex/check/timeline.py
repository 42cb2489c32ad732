"""One refresh as a picture: the request, stale and fresh objects, the quiet period, and when which sensor passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 960, 250, 40, 96, 26
BEFORE = 90  # width of what was before the request, which is not to scale
_ROWS = 18

INK, MUTED, GRID, PAPER = "#1f2933", "#616e7c", "#e4e7eb", "#ffffff"
STALE, FRESH, QUIET, THEIRS, OURS = "#9aa5b1", "#0b69a3", "#dceefb", "#ba2525", "#147d64"


@dataclass(frozen=True)
class Mark:
    """
    One object.

    :param name: its pattern, without ids.
    :param at: seconds after the request; below 0 for a stale one.
    :param size: bytes.
    """

    name: str
    at: float
    size: int


@dataclass(frozen=True)
class Timeline:
    """
    What the picture shows; all moments in seconds after the request.

    :param title: without ids.
    :param stale: what lay there at the request.
    :param fresh: what came.
    :param quiet_from: the newest object; None where nothing came.
    :param key_sensor_at: when a sensor passes that asks whether a key exists.
    :param arrived_at: when this package's sensor passes; None where it didn't.
    :param end: of the watch.
    """

    title: str
    stale: Sequence[Mark]
    fresh: Sequence[Mark]
    quiet_from: float | None
    key_sensor_at: float | None
    arrived_at: float | None
    end: float


def svg(timeline: Timeline) -> str:
    """Return the picture as SVG."""
    rows = _rows(timeline)
    height = TOP + min(max(len(rows), 1), _ROWS) * ROW + 92
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"',
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" role="img">',
        f"<title>{escape(timeline.title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _label(24, 30, timeline.title, size=16, weight="bold"),
        *_axis(timeline, height),
        *_quiet(timeline, height),
        *_objects(timeline, rows),
        *_moments(timeline, height),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(timeline: Timeline, at: float) -> float:
    start, width = LEFT + BEFORE, WIDTH - LEFT - BEFORE - RIGHT
    return start + width * min(max(at / max(timeline.end, 1), 0), 1)


def _rows(timeline: Timeline) -> list[str]:
    names = dict.fromkeys(mark.name for mark in [*timeline.stale, *timeline.fresh])
    return list(names)


def _axis(timeline: Timeline, height: int) -> Iterator[str]:
    bottom = height - 78
    yield f'<rect x="{LEFT}" y="{TOP - 14}" width="{BEFORE}" height="{bottom - TOP + 14}" fill="#f5f7fa"/>'
    yield _label(LEFT + BEFORE / 2, bottom + 18, "before", anchor="middle", color=MUTED)
    step = _step(timeline.end)
    at = 0.0
    while at <= timeline.end:
        x = _x(timeline, at)
        yield f'<line x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>'
        yield _label(x, bottom + 18, _seconds(at), anchor="middle", color=MUTED)
        at += step


def _step(end: float) -> float:
    steps = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
    return next((step for step in steps if end / step <= 8), 28800)


def _quiet(timeline: Timeline, height: int) -> Iterator[str]:
    if timeline.quiet_from is None:
        return
    start = _x(timeline, timeline.quiet_from)
    stop = _x(timeline, timeline.arrived_at if timeline.arrived_at is not None else timeline.end)
    size = f'width="{max(stop - start, 1):.1f}" height="{height - 64 - TOP}"'
    yield f'<rect x="{start:.1f}" y="{TOP - 14}" {size} fill="{QUIET}"/>'
    if stop - start > 84:
        yield _label((start + stop) / 2, TOP - 20, "quiet period", anchor="middle", color=MUTED)


def _objects(timeline: Timeline, rows: Sequence[str]) -> Iterator[str]:
    shown = rows if len(rows) <= _ROWS else [*rows[: _ROWS - 1], "…"]
    for index, name in enumerate(shown):
        y = TOP + index * ROW + 8
        text = name if name != "…" else f"and {len(rows) - _ROWS + 1} more names"
        yield _label(LEFT - 12, y + 4, _cut(text), anchor="end")
        yield f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="{GRID}"/>'
    for mark, color in [*((m, STALE) for m in timeline.stale), *((m, FRESH) for m in timeline.fresh)]:
        row = min(rows.index(mark.name), _ROWS - 1)
        x = _x(timeline, mark.at) if mark.at >= 0 else LEFT + BEFORE / 2
        about = f"{mark.name}: {mark.size:,} bytes, {_moment(mark.at)}"
        yield (
            f'<circle cx="{x:.1f}" cy="{TOP + row * ROW + 8}" r="6" fill="{color}" stroke="{PAPER}" '
            f'stroke-width="1.5"><title>{escape(about)}</title></circle>'
        )


def _moments(timeline: Timeline, height: int) -> Iterator[str]:
    yield from _line(timeline, 0, height, INK, dash="")
    if timeline.key_sensor_at is not None:
        yield from _line(timeline, timeline.key_sensor_at, height, THEIRS, dash="5 4")
    if timeline.arrived_at is not None:
        yield from _line(timeline, timeline.arrived_at, height, OURS, dash="")
    items = [(STALE, "stale object"), (FRESH, "fresh object"), (INK, "request")]
    if timeline.key_sensor_at is not None:
        items.append((THEIRS, f"S3KeySensor passes ({_moment(timeline.key_sensor_at)})"))
    ours = f"arrived ({_moment(timeline.arrived_at)})" if timeline.arrived_at is not None else "not arrived yet"
    items.append((OURS, f"HealthEx sensor: {ours}"))
    x = 24.0
    for color, text in items:
        yield f'<rect x="{x:.0f}" y="{height - 34}" width="12" height="12" rx="2" fill="{color}"/>'
        yield _label(x + 18, height - 24, text)
        x += 44 + 6.7 * len(text)


def _line(timeline: Timeline, at: float, height: int, color: str, *, dash: str) -> Iterator[str]:
    x = _x(timeline, at) + (3 if dash and at == 0 else 0)  # beside the request's line, not upon it
    ends = f'x1="{x:.1f}" y1="{TOP - 30}" x2="{x:.1f}" y2="{height - 70}"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    yield f'<line {ends} stroke="{color}" stroke-width="2"{dashes}/>'


def _label(
    x: float, y: float, text: str, *, anchor: str = "start", color: str = INK, size: int = 12, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _cut(text: str) -> str:
    return text if len(text) <= 34 else text[:33] + "…"


def _seconds(at: float) -> str:
    if at < 120:
        return f"{at:.0f} s"
    return f"{at / 60:.0f} min" if at < 7200 else f"{at / 3600:.1f} h"


def _moment(at: float) -> str:
    if at >= 0:
        return f"after {_seconds(at)}" if at else "at once"
    return f"{-at / 86_400:.0f} days before" if at <= -172_800 else f"{_seconds(-at)} before"
