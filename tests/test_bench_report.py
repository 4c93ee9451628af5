"""Tables and pictures of `yeoul bench`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from indexers.benchmarks.report import Bars, Lines, NoMatplotlib, check_plot, draw, ms, table


def test_a_table_is_markdown() -> None:
    assert table(["what", "p50"], [["search", "5 ms"], ["", ""]]) == (
        "| what | p50 |\n|---|---|\n| search | 5 ms |\n|  |  |"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.1234, "0.12 ms"), (1.26, "1.3 ms"), (99.94, "99.9 ms"), (123.4, "123 ms"), (math.nan, "")],
)
def test_milliseconds_have_as_many_digits_as_they_deserve(value: float, told: str) -> None:
    assert ms(value) == told


def test_every_kind_of_panel_is_drawn(tmp_path: Path) -> None:
    points = [(1.0, 2.0), (2.0, 300.0)]
    panels: list[Lines | Bars] = [
        Lines(title="a", x="x", y="y", lines={"one": points}, logarithmic=logarithmic) for logarithmic in (True, False)
    ]
    draw([*panels, Bars(title="b", value="ms", bars={"p50": {"a": 1, "b": 2}, "p95": {"b": 3}})], tmp_path / "a.png")
    draw(panels[:1], tmp_path / "b.png")
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert _width(pictures[0]) == 3 * _width(pictures[1])


def _width(picture: bytes) -> int:
    return int.from_bytes(picture[16:20], "big")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NoMatplotlib, match=r'pip install "yeoul\[bench\]"'):
        check_plot()
