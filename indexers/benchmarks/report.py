"""Figures as a Markdown table and as a picture. Knows nothing of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import YeoulError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (6.0, 4.0)  # of a panel, wide and high
_DOTS = 120  # an inch
_BAR_SPACE = 0.8  # of the room between two names


class NoMatplotlib(YeoulError):
    """A picture is asked for where nothing can draw one."""

    code = "no_matplotlib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A panel of lines: name → (x, y); `logarithmic` where the y differ by more than a hundred times."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A panel of bars that lie side by side: series → name → value."""

    title: str
    value: str
    bars: Mapping[str, Mapping[str, float]]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    first, second, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, second.replace(" ", ""), *rest])


def ms(value: float) -> str:
    """Milliseconds with three digits or so; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def check_plot() -> None:
    """Raises NoMatplotlib: before something is measured for minutes."""
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra, and a second to import
    except ImportError as error:
        raise NoMatplotlib(f"no picture can be drawn ({error})", 'pip install "yeoul[bench]"') from error


def draw(panels: Sequence[Lines | Bars], path: Path) -> None:
    """A PNG with the panels from left to right. Raises NoMatplotlib."""
    check_plot()
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    figure = Figure((_INCHES[0] * len(panels), _INCHES[1]), dpi=_DOTS, layout="constrained")
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place, title=panel.title)
        if isinstance(panel, Lines):
            _lines(axes, panel)
        else:
            _bars(axes, panel)
    figure.savefig(path, format="png")


def _lines(axes: Axes, panel: Lines) -> None:
    for name, points in panel.lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="." if len(points) < 20 else "", label=name)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    if panel.logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend()


def _bars(axes: Axes, panel: Bars) -> None:
    names = list(dict.fromkeys(name for values in panel.bars.values() for name in values))
    height = _BAR_SPACE / len(panel.bars)
    for place, (series, values) in enumerate(panel.bars.items()):
        at = [names.index(name) + place * height for name in values]
        axes.barh(at, list(values.values()), height, label=series)
    axes.set_yticks([row + height * (len(panel.bars) - 1) / 2 for row in range(len(names))], names)
    axes.invert_yaxis()
    axes.set(xlabel=panel.value)
    axes.legend()
