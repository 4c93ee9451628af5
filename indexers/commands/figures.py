"""What the commands of `yeoul bench` share: where their figures go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

if TYPE_CHECKING:
    from indexers.benchmarks.report import Bars, Lines

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Draw them into this PNG.")]


def check_plot(file: Path | None) -> None:
    """Before anything is measured."""
    from indexers.benchmarks import report

    if file is not None:
        report.check_plot()


def give(table: str, figures: Any, panels: list[Lines | Bars], json_file: Path | None, plot_file: Path | None) -> None:
    """Prints the table, and writes the files that were asked for."""
    from indexers.benchmarks.report import draw

    print(table)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    if plot_file is not None:
        draw(panels, plot_file)
