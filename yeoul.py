"""The command line, and the only place where `pipeline`, `indexers` and `api` meet.

Each command imports what it needs: Kiwi, torch and the web framework together take seconds to start.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from indexers.commands import bench, indexing, operating, sources
from indexers.commands.operating import operated
from indexers.commands.terminal import fail
from pipeline import settings as configuration
from pipeline.errors import FolderInUse, Unavailable, YeoulError
from pipeline.settings import MOST_WORKERS, Settings

if TYPE_CHECKING:
    from pipeline.assembly import Assembly
    from pipeline.processes import Processes

app = typer.Typer(
    help="Korean hybrid search: dense vectors and Kiwi-morpheme BM25 in one explainable ranking.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (indexing.index, operating.verify, operating.rebuild, operating.rollback):
    app.command()(command)
for group, name in ((sources.articles_app, "articles"), (sources.sources_app, "sources"), (bench.bench_app, "bench")):
    app.add_typer(group, name=name)

_LOOK_SECONDS = 0.3  # between attempts to get at a folder that another command has
_FOLDER_SECONDS = 30.0  # a server waits so long for another command to end
_INDEXERS_NICENESS = 5  # searches on the same machine go first: where it is full, a change waits rather than a person
_STORE_SECONDS = 2.0  # between attempts to open a collection whose store is away
# The exponent of the processor cycles for which a thread of OpenBLAS spins after its work. By default 2^26: at 20 searches a
# second that is a whole core doing nothing.
_BLAS_SPIN = "12"
_SERVE = "yeoul serve"  # who holds the data folder
_MODES = ("hybrid", "dense", "lexical")


def main() -> None:
    """The console script: an error of ours is one line on stderr and exit code 1."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _BLAS_SPIN)  # read when numpy is imported
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 still gets its answer
    try:
        app()
    except YeoulError as error:
        fail(str(error))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option(help="Articles to show, 1-100.")] = 10,
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    category: Annotated[str | None, typer.Option(help="Only articles of this category.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show why each article is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Search the index."""
    if mode not in _MODES:
        raise typer.BadParameter(f"should be one of {', '.join(_MODES)}, is {mode!r}", param_hint="--mode")
    # What a shell passes as bytes that are no UTF-8 comes with lone surrogates.
    text = query.encode("utf-8", "replace").decode("utf-8")
    from pipeline.index.filters import Filter
    from pipeline.retrieval.query import SearchRequest

    SearchRequest.checked(text, limit=limit, mode=mode, filter_=Filter(category=category))  # before anything is started
    asked = {"query": text, "limit": limit, "mode": mode, "category": category, "explain": explain or not as_json}
    answer = operated("search", asked).answer
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
    else:
        _print_answer(answer, explain=explain)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (api.host).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (api.port).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=MOST_WORKERS, help="Processes that answer on it (api.workers).")
    ] = None,
) -> None:
    """Serve the HTTP API and the search page; with Milvus Lite the indexer runs in the same process."""
    from pipeline.memory import collect_seldom, keep_for_good

    collect_seldom()
    settings = configuration.load()
    host, port, workers = host or settings.api.host, port or settings.api.port, workers or settings.api.workers
    if workers > 1:
        from api import serving

        serving.serve_by_workers(settings, workers, host, port)
        return
    processes = _started(settings)  # Kiwi takes seconds: it starts while this process imports
    from api import serving
    from api.app import create_app
    from pipeline.assembly import Assembly

    assembly = Assembly.open(settings, command=_SERVE, apart=processes, progress=True)
    embedded = _Embedded(assembly, f"http://{host}:{port}") if assembly.lock is not None else None
    application = create_app(settings, assembly=assembly, wake=embedded.wake if embedded is not None else _nothing)
    keep_for_good()
    signal.signal(signal.SIGTERM, _end)  # uvicorn, having stopped, sends itself what it got
    if embedded is not None:
        embedded.start(on_commit=application.state.service.notify)
    try:
        serving.serve(application, host, port)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending
        if embedded is not None:
            embedded.stop()
        assembly.close()


@app.command(name="eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    pool: Annotated[
        list[Path] | None, typer.Option(help="More documents to search among: .jsonl(.gz) of _id, title, text.")
    ] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Only so many queries, evenly drawn.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain Kiwi BM25 beside the modes.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="nDCG@10 for each weight of the dense leg.")] = False,
) -> None:
    """Score every mode on judged queries; uses a temporary index, never the live one."""
    from pipeline import parts
    from pipeline.evaluation import runner

    settings = configuration.load()
    opened = parts.PartsHere.open(settings, progress=sys.stderr.isatty())
    evaluation = runner.run(
        folder,
        pool=pool or (),
        queries=queries,
        plain=plain,
        swept=sweep,
        analyser=opened.analyser,
        encoder=opened.encoder,
        chunking=parts.chunking_parameters(settings),
        lexical=parts.lexical_parameters(settings),
        fusion=parts.fusion_parameters(settings, opened.manifest),
        device=parts.device_of(settings),
        progress=sys.stderr.isatty(),
    )
    print(runner.table(evaluation))
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(evaluation.to_json(), option=orjson.OPT_INDENT_2))


@app.command()
def doctor() -> None:
    """Show the settings in force, versions, what can be reached, and what to fix."""
    from pipeline.diagnosis import diagnose

    settings = configuration.load()
    print("settings (yeoul.toml, YEOUL_* over it; see README for what each means)")
    for name, value in configuration.in_force(settings):
        print(f"  {name} = {value}")
    amiss = 0
    for check in diagnose(settings):
        print(f"{'ok   ' if check.ok else 'AMISS'} {check.name}: {check.found}")
        if not check.ok:
            amiss += 1
            print(f"      cure: {check.cure}")
    if amiss:
        raise SystemExit(1)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is: it stands in the audit log.")],
    scope: Annotated[list[str] | None, typer.Option(help="read, write or admin; may be given again.")] = None,
) -> None:
    """Make a key for the API: shown once, kept nowhere; its hash goes into the settings."""
    from api.security import new_key

    secret, entry = new_key(name, tuple(scope or ("write",)))  # type: ignore[arg-type]  # checked there
    print(f"key (send it as 'Authorization: Bearer KEY', it is not shown again):\n{secret}")
    print(f"for api.keys in yeoul.toml, or the list in YEOUL_API__KEYS:\n{orjson.dumps(entry).decode()}")


indexers_app = typer.Typer(no_args_is_help=True, help="The worker and the scheduler as a process of their own.")
app.add_typer(indexers_app, name="indexers")


@indexers_app.command("run")
def indexers_run() -> None:
    """Drain the inbox and run the sources, until SIGTERM or Ctrl-C; for a Milvus server."""
    os.nice(_INDEXERS_NICENESS)
    from indexers.service import IndexerService
    from pipeline.assembly import Assembly
    from pipeline.memory import keep_for_good

    settings = configuration.load()
    if settings.milvus_is_lite:
        fail(
            f"Milvus Lite ({settings.milvus_uri}) belongs to one process, which is yeoul serve: it indexes by itself. "
            "Set milvus.uri to a Milvus server to index in a process of its own"
        )
    assembly = Assembly.open(settings, command="yeoul indexers run", progress=sys.stderr.isatty())
    service = IndexerService(assembly)
    keep_for_good()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        _until_connected(assembly, stop)
        service.start()
        stop.wait()
    finally:
        service.stop()
        assembly.close()


def _started(settings: Settings) -> Processes:
    """The processes of a server; a command that has the folder just now is waited for."""
    from pipeline.folder import holder_of
    from pipeline.processes import Processes

    deadline = time.monotonic() + _FOLDER_SECONDS
    while True:
        try:
            return Processes.start(settings, _SERVE)
        except FolderInUse:
            holder = holder_of(settings.data_dir)
            if (holder is not None and holder.url) or time.monotonic() > deadline:
                raise  # another server
        time.sleep(_LOOK_SECONDS)


class _Embedded:
    """What the process that holds Milvus Lite does beside serving: it indexes, schedules, and works for other commands."""

    def __init__(self, assembly: Assembly, url: str) -> None:
        from indexers.operations import of_server
        from indexers.service import IndexerService
        from pipeline.control import ControlServer
        from pipeline.folder import Holder

        assert assembly.lock is not None
        assembly.lock.announce(Holder.this(_SERVE, url))
        self._control = ControlServer(assembly.settings.data_dir, of_server(assembly))
        self._indexers = IndexerService(assembly, on_commit=self._committed)
        self._on_commit: Callable[[], None] = _nothing

    def start(self, on_commit: Callable[[], None]) -> None:
        self._on_commit = on_commit
        self._indexers.start()
        self._control.start()

    def wake(self) -> None:
        self._indexers.wake()

    def stop(self) -> None:
        """Ends after the batch under way."""
        self._control.close()
        self._indexers.stop()

    def _committed(self) -> None:
        self._on_commit()


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _nothing() -> None:
    pass


def _until_connected(assembly: Assembly, stop: threading.Event) -> None:
    """Opens the collection, trying again while the store is away."""
    while not stop.is_set():
        try:
            assembly.connect()
        except Unavailable as error:
            logging.getLogger(__name__).warning("waiting for the store: %s", error)
            stop.wait(_STORE_SECONDS)
        else:
            return


def _print_answer(answer: dict[str, Any], *, explain: bool) -> None:
    import html

    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for number, item in enumerate(answer["items"], start=1):
        snippet = html.unescape(item["snippet"].replace("<mark>", bold).replace("</mark>", plain))
        place = " · ".join(part for part in (item["category"], str(item["published_at"] or "")[:10]) if part)
        print(f"{number:>2}. {bold}{item['title']}{plain}  {item['score']:.3f}  {place}")
        print(f"    {snippet}")
        if explain:
            print(f"    {_why(item['explain'])}")
    told = "no article found" if not answer["items"] else f"{answer['total']:,} articles"
    print(
        f"{told}, {answer['took_ms']:.1f} ms{', degraded: ' + ', '.join(answer['degraded']) if answer['degraded'] else ''}"
    )


def _why(parts: dict[str, Any]) -> str:
    legs = []
    for leg, weight in (("dense", parts["alpha"]), ("lexical", 1 - parts["alpha"])):
        if parts[leg] is not None:
            legs.append(f"{weight:.2f} × {parts[leg + '_normalised']:.3f} ({leg} {parts[leg]:.3f})")
    return f"= {' + '.join(legs)}; matched: {', '.join(parts['matched_terms']) or 'nothing'}"


if __name__ == "__main__":
    main()
