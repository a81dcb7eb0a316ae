"""Plots of a run as plain SVG: demand, replicas, and requests that missed their objectives, by the minute.

Colours and text follow the reader's scheme, light or dark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 960
LEFT: Final = 64
RIGHT: Final = 16
PANEL: Final = 150
GAP: Final = 44
TOP: Final = 40
MOST_POINTS: Final = 1440
TICKS: Final = 4
COLOURS: Final = ("a", "b", "c", "d", "e", "f")
_STYLE: Final = (
    "<style>text{font:12px sans-serif;fill:#222}.axis{stroke:#bbb}"
    "path{fill:none;stroke-width:1.4}.a{stroke:#1f77b4}.b{stroke:#d1495b}.c{stroke:#2a9d5c}.d{stroke:#b07d00}"
    ".e{stroke:#7b5ea7}.f{stroke:#666}@media(prefers-color-scheme:dark){text{fill:#ddd}.axis{stroke:#555}"
    ".a{stroke:#6cb4ee}.b{stroke:#ff8090}.c{stroke:#6fdc9c}.d{stroke:#f0c050}.e{stroke:#c4a8f0}.f{stroke:#aaa}}"
    "</style>"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: a title with its unit, and values by name, each evenly spaced over the same time."""

    title: str
    series: Mapping[str, Sequence[float]]


def svg(title: str, seconds: float, panels: Sequence[Panel]) -> str:
    """The panels below each other, over the same seconds."""
    height = TOP + len(panels) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        _STYLE,
        f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts.extend(_panel(panel, TOP + number * (PANEL + GAP), seconds))
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, top: float, seconds: float) -> list[str]:
    most = max((max(values, default=0.0) for values in panel.series.values()), default=0.0) or 1.0
    parts = [f'<text x="{LEFT}" y="{top + 8}">{escape(panel.title)}</text>', *_legend(panel, top + 8)]
    bottom = top + GAP / 2 + PANEL - 10
    for tick in range(TICKS + 1):
        part = tick / TICKS
        y, x = bottom - part * (PANEL - 20), LEFT + part * (WIDTH - LEFT - RIGHT)
        parts.append(f'<line class="axis" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most * part:.3g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_clock(seconds * part)}</text>')
    for colour, values in zip(COLOURS, panel.series.values(), strict=False):
        parts.append(f'<path class="{colour}" d="{_line(values, bottom, most)}"/>')
    return parts


def _legend(panel: Panel, y: float) -> list[str]:
    parts, x = [], WIDTH - RIGHT
    for colour, name in reversed(list(zip(COLOURS, panel.series, strict=False))):
        x -= 8 * len(name) + 34
        parts.append(f'<path class="{colour}" d="M{x} {y - 4}h20"/><text x="{x + 24}" y="{y}">{escape(name)}</text>')
    return parts


def _line(values: Sequence[float], bottom: float, most: float) -> str:
    thinned = thin(values)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(thinned))
    scale = (PANEL - 20) / most
    points = (
        f"{LEFT + at * step:.1f} {bottom - value * scale:.1f}H{LEFT + (at + 1) * step:.1f}"
        for at, value in enumerate(thinned)
    )
    return "M" + "L".join(points) if thinned else ""


def thin(values: Sequence[float]) -> list[float]:
    """At most ``MOST_POINTS`` values, each the mean of equally many."""
    every = -(-len(values) // MOST_POINTS) or 1
    groups = (values[at : at + every] for at in range(0, len(values), every))
    return [sum(group) / len(group) for group in groups]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}"
