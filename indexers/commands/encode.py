"""`yeoul bench encode`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from indexers.commands.figures import JsonFile, PlotFile, check_plot, give
from indexers.commands.terminal import bar, tell

_SHAPES = "koelectra-small,bert-base"


def bench_encode(
    model: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A SentenceTransformer.")] = None,
    shapes: Annotated[
        str, typer.Option(help=f"Encoders with random weights, by comma. (default, without --model: {_SHAPES})")
    ] = "",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where they run.")] = "auto",
    length: Annotated[
        list[int] | None, typer.Option(min=3, help="Tokens; may be given again. (default: 8, 16 ... 512)")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Of the closed loop.")] = 256,
    seconds: Annotated[float, typer.Option(min=1, help="Of each cell.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=0, help="Of batches against one by one.")] = 2,
    against: Annotated[Literal["infinity"] | None, typer.Option(help="Another server, on the same model.")] = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """Texts a second of SentenceTransformers by their length: through HTTP, and in process. Needs wrk."""
    import tempfile

    import platformdirs
    import torch

    from indexers.benchmarks import encoding
    from indexers.benchmarks.deployment import prepared
    from indexers.benchmarks.infinity import infinity, install
    from indexers.benchmarks.shapes import made

    check_plot(plot_file)
    if device == "cuda" and not torch.cuda.is_available():
        tell("there is no GPU here that torch sees: the CPU is measured instead")
    where: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() and device != "cpu" else "cpu"
    environments = Path(platformdirs.user_cache_dir("yeoul")) / "peers"
    if against:
        install(environments)
    plan = encoding.Plan(
        lengths=length or encoding.LENGTHS,
        connections=connections,
        seconds=seconds,
        rounds=rounds,
        device=where,
        peer=partial(infinity, device=where, environments=environments) if against else None,
    )
    figures = []
    with tempfile.TemporaryDirectory(prefix="yeoul-bench-") as temporary:
        folder = Path(temporary)
        models = {model.resolve().name: model.resolve()} if model is not None else {}
        for shape in filter(None, (shapes or ("" if models else _SHAPES)).split(",")):
            models[shape] = made(shape, folder)
        for name, place in models.items():
            with bar(name, "cells", plan.cells) as advance:
                figures.append(encoding.measured(name, place, prepared(folder / name), plan, advance=advance))
    told = "\n\n".join(one.tables() for one in figures)
    give(told, [asdict(one) for one in figures], [one.panel() for one in figures], json_file, plot_file)
