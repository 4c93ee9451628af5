"""`yeoul bench`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from indexers.commands.terminal import bar, fail, tell
from pipeline import settings as configuration
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.evaluation.corpus_index import System

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


@bench_app.command("freshness")
def bench_freshness(
    full: Annotated[bool, typer.Option("--full", help="20,000 passages and 120 s instead of 2,000 and 20 s.")] = False,
    with_rebuild: Annotated[bool, typer.Option("--rebuild", help="And once more while the index is rebuilt.")] = False,
    servers: Annotated[int, typer.Option(min=1, help="API processes, with a Milvus server.")] = 2,
    pair: Annotated[
        bool, typer.Option("--pair", help="On database_url and milvus.uri of the settings, which should be empty.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
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

    analyser = parts.analyser_of(settings)
    encoder = parts.encoder_of(settings, analyser)
    return System(
        analyser=analyser,
        encoder=encoder,
        chunking=parts.chunking_parameters(settings),
        lexical=parts.lexical_parameters(settings),
        fusion=parts.fusion_parameters(settings, parts.running_manifest(settings, analyser, encoder)),
        device=parts.device_of(settings),
    )
