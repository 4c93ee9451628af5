"""`yeoul bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from indexers.commands.encode import bench_encode
from indexers.commands.figures import JsonFile, PlotFile, check_plot, give
from indexers.commands.terminal import bar, fail, tell
from pipeline import settings as configuration
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.evaluation.corpus_index import System

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.")
bench_app.command("encode")(bench_encode)

_SIZES = (10_000, 30_000, 100_000, 169_000)  # passages; the last is a whole set of distractors

PassagesFile = Annotated[
    Path | None,
    typer.Option(
        "--passages",
        exists=True,
        dir_okay=False,
        help="What is searched: .jsonl(.gz) of _id, title, text. (default: editions of the samples)",
    ),
]
Count = Annotated[int, typer.Option("--count", min=1, help="How many passages of it.")]
QueryFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--queries", help="A BEIR folder whose queries are asked; may be given again. (default: the samples')"
    ),
]
Searches = Annotated[int, typer.Option(min=1, help="Of each row.")]


@bench_app.command("freshness")
def bench_freshness(
    full: Annotated[bool, typer.Option("--full", help="20,000 passages and 120 s instead of 2,000 and 20 s.")] = False,
    with_rebuild: Annotated[bool, typer.Option("--rebuild", help="And once more while the index is rebuilt.")] = False,
    servers: Annotated[int, typer.Option(min=1, help="API processes, with a Milvus server.")] = 2,
    pair: Annotated[
        bool, typer.Option("--pair", help="On database_url and milvus.uri of the settings, which should be empty.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Publish to searchable and delete to gone, under 20 pushes and 20 searches a second, in a deployment of its own."""
    import subprocess
    import tempfile

    from indexers.benchmarks.deployment import deployed
    from indexers.benchmarks.freshness import measured

    settings = configuration.load()
    stores: dict[str, Any] = {}
    if pair:
        if settings.milvus_is_lite or not settings.database_url:
            fail("--pair needs database_url and milvus.uri: a PostgreSQL and a Milvus server with nothing in them")
        stores = {
            "database_url": settings.database_url,
            "milvus_uri": settings.milvus_uri,
            "milvus_token": settings.milvus.token,
            "servers": servers,
        }
    with tempfile.TemporaryDirectory(prefix="yeoul-bench-") as folder, deployed(Path(folder), **stores) as deployment:

        def rebuilt() -> None:
            command = [sys.executable, "-m", "yeoul", "rebuild"]
            done = subprocess.run(
                command, cwd=folder, env=dict(deployment.environment), capture_output=True, check=False
            )
            if done.returncode:
                fail(f"the rebuild failed: {done.stderr.decode().strip()}")

        figures = measured(
            deployment,
            passages=20_000 if full else 2_000,
            seconds=120 if full else 20,
            rebuild=rebuilt if with_rebuild else None,
        )
    print(figures.table())
    for line in figures.wrong[:10]:
        tell(line)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(asdict(figures), option=orjson.OPT_INDENT_2))
    if figures.wrong:
        raise SystemExit(1)


@bench_app.command("peers")
def bench_peers(
    passages: Annotated[Path, typer.Option(help="A .jsonl(.gz) of _id, title, text.")],
    queries: Annotated[list[Path], typer.Option(help="A BEIR folder with queries.jsonl; may be given again.")],
    limit: Annotated[int, typer.Option(min=1, help="Passages at most.")] = 100_000,
    asked: Annotated[int, typer.Option(min=1, help="Distinct queries, drawn from all folders.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="A peer's queries stop after so many.")] = 60.0,
    only: Annotated[list[str] | None, typer.Option(help="Of Yeoul, floor and the peers; may be given again.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Searches a second beside other hybrid searches, in process, on the same passages, queries and machine.

    Each peer gets an environment of its own in the user's cache, made with pip when it is first asked for.
    """
    import tempfile

    import platformdirs

    from indexers.benchmarks import comparison, own
    from indexers.benchmarks.handover import Material, hand_over
    from pipeline.evaluation.cache import ArrayCache, default_folder

    peers = {peer.name: peer for peer in comparison.PEERS}
    names = [comparison.YEOUL, comparison.FLOOR, *peers]
    if unknown := sorted(set(only or ()) - set(names)):
        fail(f"--only should be one of {', '.join(names)}, is {unknown[0]!r}")
    material = Material.read(passages, queries, limit=limit, asked=asked)
    opened = partial(system_of, configuration.load())
    environments = Path(platformdirs.user_cache_dir("yeoul")) / "peers"
    rows = []
    with tempfile.TemporaryDirectory(prefix="yeoul-bench-") as temporary:
        folder = Path(temporary)
        with bar("preparing", "passages", limit) as advance:
            handed = hand_over(material, opened(), ArrayCache(default_folder()), folder, advance=advance)
        ours = {
            comparison.YEOUL: partial(own.yeoul, opened, material, default_folder(), seconds),
            comparison.FLOOR: partial(own.floor, opened, folder, seconds),
        }
        for name in only or names:
            tell(f"measuring {name}")
            if name in ours:
                rows.append(comparison.of_own(name, ours[name], handed))
            else:
                rows.append(comparison.of_peer(peers[name], handed, folder, environments=environments, seconds=seconds))
    print(comparison.table(rows, handed))
    if json_file is not None:
        json_file.write_bytes(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2))


def system_of(settings: Settings) -> System:
    """What `settings` describe, open: Kiwi, the encoder and the parameters of an index that is thrown away."""
    from pipeline import parts
    from pipeline.evaluation.corpus_index import System

    opened = parts.PartsHere.open(settings, progress=sys.stderr.isatty())
    return System(
        analyser=opened.analyser,
        encoder=opened.encoder,
        chunking=parts.chunking_parameters(settings),
        lexical=parts.lexical_parameters(settings),
        fusion=parts.fusion_parameters(settings, opened.manifest),
        device=parts.device_of(settings),
    )


@bench_app.command("search")
def bench_search(
    passages: PassagesFile = None,
    count: Count = 100_000,
    queries: QueryFolders = None,
    keep: Annotated[
        Path | None, typer.Option(help="A folder for the filled index: the next run with it indexes nothing.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Of the closed loop.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="Of each load.")] = 30.0,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, help="Requests a second of the open loop. (default: half of the closed loop's)"),
    ] = None,
    overload: Annotated[bool, typer.Option("--overload", help="Four times as many as it can answer, too.")] = False,
    overload_seconds: Annotated[float, typer.Option(min=1, help="Of that.")] = 60.0,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Compare with a server that has this in its environment."),
    ] = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """Searches a second and their latency through HTTP, memory and start of a server of its own. Needs wrk."""
    from indexers.benchmarks.deployment import prepared
    from indexers.benchmarks.passages import filled
    from indexers.benchmarks.queries import queries as read
    from indexers.benchmarks.search import Plan, measured
    from indexers.benchmarks.wrk import check_wrk

    plan = Plan(
        connections=connections,
        seconds=seconds,
        rate=rate,
        overload=overload_seconds if overload else 0.0,
        against=dict(_variable(one) for one in against or ()),
    )
    check_plot(plot_file)
    check_wrk()
    asked = read(queries or [])
    with _folder(keep) as folder:
        deployment = prepared(folder)
        held = filled(deployment, passages, count)
        figures = measured(deployment, passages=held, queries=asked, plan=plan)
    give(figures.table(), asdict(figures), figures.panels(), json_file, plot_file)


@bench_app.command("legs")
def bench_legs(
    passages: PassagesFile = None,
    count: Count = 100_000,
    queries: QueryFolders = None,
    searches: Searches = 300,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """Where the time of one search goes, in process: p50 and p95 of each stage, in every mode."""
    from indexers.benchmarks import legs
    from indexers.benchmarks.passages import batches, documents
    from indexers.benchmarks.queries import queries as read
    from pipeline.evaluation.cache import ArrayCache, default_folder
    from pipeline.index.resident import ResidentEngine

    check_plot(plot_file)
    asked, system = read(queries or []), system_of(configuration.load())
    engine = ResidentEngine(system.encoder.dim, system.lexical, device=system.device)
    with bar("passages", "passages", total=count) as advance:
        for made, vectors in batches(documents(passages), system, ArrayCache(default_folder()), count):
            engine.add(made, vectors)
            advance(len(made))
    figures = legs.measured(engine, system, asked, searches)
    give(figures.table(), asdict(figures), figures.panels(), json_file, plot_file)


@bench_app.command("growth")
def bench_growth(
    passages: PassagesFile = None,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help=f"May be given again. (default: {', '.join(map(str, _SIZES))})")
    ] = None,
    queries: QueryFolders = None,
    searches: Searches = 300,
    vectors: Annotated[int, typer.Option(min=0, help="Random ones, for the dense leg alone.")] = 1_000_000,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """One search and memory as the index grows, in process; MB a thousand passages; the dense leg over a million vectors."""
    from indexers.benchmarks import growth
    from indexers.benchmarks.passages import batches, documents
    from indexers.benchmarks.queries import queries as read
    from pipeline.evaluation.cache import ArrayCache, default_folder

    check_plot(plot_file)
    asked, system, kept = read(queries or []), system_of(configuration.load()), ArrayCache(default_folder())
    sizes = size or list(_SIZES)
    with bar("passages", "passages", total=max(sizes)) as advance:
        # All of it is made once before: what Kiwi takes meanwhile is no part of the growth.
        for made, _ in batches(documents(passages), system, kept, max(sizes)):
            advance(len(made))
    figures = growth.measured(
        batches(documents(passages), system, kept, max(sizes)), system, asked,
        sizes=sizes, searches=searches, made_up=vectors,
    )  # fmt: skip
    give(figures.table(), asdict(figures), figures.panels(), json_file, plot_file)


@bench_app.command("index")
def bench_index(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Articles as yeoul index takes them. (default: the samples)")
    ] = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
) -> None:
    """Characters and passages a second of `yeoul index`, beside Kiwi alone on the same text, and its memory."""
    import tempfile

    from indexers.benchmarks import indexing
    from indexers.benchmarks.deployment import prepared
    from indexers.benchmarks.passages import SHIPPED
    from pipeline.korean.morphemes import Analyser

    check_plot(plot_file)
    with tempfile.TemporaryDirectory(prefix="yeoul-bench-") as folder:
        deployment = prepared(Path(folder))
        figures = indexing.measured(paths or [SHIPPED], Analyser.open(), deployment.folder, deployment.environment)
    give(figures.table(), asdict(figures), figures.panels(), json_file, plot_file)
    print(f"\n{figures.told[0]}\n{figures.told[1]}")


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """`kept`, or one that is deleted afterwards."""
    import tempfile

    if kept is not None:
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="yeoul-bench-") as folder:
        yield Path(folder)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"should be NAME=VALUE, is {text!r}", param_hint="--against")
    return name, value
