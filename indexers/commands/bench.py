"""`yeoul bench`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from indexers.commands.terminal import fail, tell
from pipeline import settings as configuration

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
