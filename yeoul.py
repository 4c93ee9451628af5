"""The command line, and the only place where `pipeline`, `indexers` and `api` meet.

Each command imports what it needs: Kiwi, torch and the web framework together take seconds to start.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import orjson
import typer

from pipeline import settings as configuration
from pipeline.errors import FolderInUse, NotReady, Unavailable, UnreadableSource, YeoulError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from indexers.worker import Totals
    from pipeline.assembly import Assembly
    from pipeline.control import Reply
    from pipeline.korean.morphemes import Analyser
    from pipeline.storage.articles import ArticleStore

app = typer.Typer(
    help="Korean hybrid search: dense vectors and Kiwi-morpheme BM25 in one explainable ranking.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LOOK_SECONDS = 0.3  # between looks at an inbox that another process drains
_FOLDER_SECONDS = 30.0  # a search waits so long for another command to end or for a server to come up
_STORE_SECONDS = 2.0  # between attempts to open a collection whose store is away
_BULK_GC = (1_000_000, 20, 100)  # a bulk load makes millions of tuples and hardly a cycle: by default 8% of its time
# The exponent of the processor cycles for which a thread of OpenBLAS spins after its work. By default 2^26: at 20 searches a
# second that is a whole core doing nothing.
_BLAS_SPIN = "12"
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
        _fail(str(error))


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders: .jsonl .csv .parquet .md .html, also .gz")],
) -> None:
    """Read articles from files and make them searchable."""
    from concurrent.futures import Future, ThreadPoolExecutor

    from indexers.bulk import submit
    from pipeline.korean.morphemes import Analyser
    from pipeline.storage.articles import ArticleStore
    from pipeline.storage.database import StateDatabase

    settings = configuration.load()
    database = StateDatabase.open(settings.state_url)
    try:
        store = ArticleStore(database)
        with ThreadPoolExecutor(1, thread_name_prefix="kiwi") as pool:
            starting: list[Future[Analyser]] = []  # as soon as there is something to index, while the rest is read

            def read(articles: int) -> None:
                advance(articles)
                if not starting and store.queue_length() and _folder_is_free(settings):
                    starting.append(pool.submit(Analyser.open, settings.user_words, synonyms=settings.synonyms))

            with _bar("reading", "articles") as advance:
                report = submit(store, paths, on_problem=_tell, on_progress=read)
            analyser = starting[0].result if starting else None
            totals = _drained(settings, store, report.last_seq, analyser) if store.queue_length() else None
        failed = store.failures(report.first_seq, report.last_seq) if report.first_seq else {}
        for article_id, error in failed.items():
            _tell(f"{article_id}: {error}")
        print(
            f"{report.read:,} articles read: {report.accepted:,} new or changed, {report.unchanged:,} unchanged, "
            f"{report.refused:,} lines refused"
        )
        if totals is not None:
            print(
                f"{totals.articles:,} articles indexed as {totals.passages:,} passages, {totals.encoded:,} of them encoded; "
                f"{totals.deleted:,} deleted, {totals.failed:,} failed"
            )
    except KeyboardInterrupt:
        _fail("stopped. What was accepted waits in the inbox: run the command again to go on")
    finally:
        database.close()
    if failed or (totals is not None and totals.failed) or (report.refused and not report.read):
        raise SystemExit(1)


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
    answer = _operated("search", asked).answer
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
    else:
        _print_answer(answer, explain=explain)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (api.host).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (api.port).")] = None,
) -> None:
    """Serve the HTTP API and the search page; with Milvus Lite the indexer runs in the same process."""
    import uvicorn

    from api.app import create_app

    settings = configuration.load()
    host, port = host or settings.api.host, port or settings.api.port
    assembly = _held(settings)
    embedded = _Embedded(assembly, f"http://{host}:{port}") if assembly.lock is not None else None
    application = create_app(settings, assembly=assembly, wake=embedded.wake if embedded is not None else _nothing)
    if embedded is not None:
        embedded.start(on_commit=application.state.service.notify)
    try:
        uvicorn.run(
            application,
            host=host,
            port=port,
            loop="uvloop",
            http="httptools",
            log_level="warning",
            proxy_headers=False,  # who may write without a key is decided by the real peer
        )
    finally:
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
    from pipeline.korean.morphemes import Analyser

    settings = configuration.load()
    analyser = Analyser.open(settings.user_words, synonyms=settings.synonyms)
    encoder = parts.encoder_of(settings, analyser, progress=sys.stderr.isatty())
    evaluation = runner.run(
        folder,
        pool=pool or (),
        queries=queries,
        plain=plain,
        swept=sweep,
        analyser=analyser,
        encoder=encoder,
        chunking=parts.chunking_parameters(settings),
        lexical=parts.lexical_parameters(settings),
        fusion=parts.fusion_parameters(settings, parts.running_manifest(settings, analyser, encoder)),
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
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what does not agree.")] = False,
) -> None:
    """Check that registry, collection, change log and resident index agree."""
    _operated("verify", {"repair": repair})


@app.command()
def rebuild(
    encoder: Annotated[str | None, typer.Option(help="Encode with this one from now on (encoder.model).")] = None,
    golden: Annotated[Path | None, typer.Option(help="Queries to compare old and new by, one a line.")] = None,
    min_overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Of their ten best articles, so many the same.")
    ] = 0.5,
    prune: Annotated[
        bool, typer.Option("--prune", help="Only drop the collections that are kept for a rollback.")
    ] = False,
) -> None:
    """Build the index anew (encoder, dictionary, chunking as the settings say) while it goes on answering."""
    from pipeline.parts import recipe_of, settings_with

    overrides: dict[str, Any] = {"encoder": {"model": encoder}} if encoder is not None else {}
    settings = configuration.load(**overrides)
    recipe = recipe_of(settings_with(settings, _recipe_in_use(settings), unless_given=True))
    queries = _lines_of(golden) if golden is not None else []
    asked = {"recipe": recipe, "queries": queries, "min_overlap": min_overlap, "prune": prune}
    _operated("rebuild", asked, as_built=True)


@app.command()
def rollback(
    golden: Annotated[Path | None, typer.Option(help="Queries to compare both by, one a line.")] = None,
    min_overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Of their ten best articles, so many the same.")
    ] = 0.0,
) -> None:
    """Put the index in use that was before the last rebuild, with every change since."""
    queries = _lines_of(golden) if golden is not None else []
    _operated("rollback", {"queries": queries, "min_overlap": min_overlap}, as_built=True)


articles_app = typer.Typer(no_args_is_help=True, help="Articles that could not be indexed.")
app.add_typer(articles_app, name="articles")


@articles_app.command("failed")
def articles_failed(limit: Annotated[int, typer.Option(min=1, help="So many.")] = 100) -> None:
    """List the articles whose newest change could not be indexed, with the error."""
    with _store() as store:
        for failed in store.failed(limit):
            print(f"{failed.article_id}\t{failed.seq}\t{failed.accepted_at.isoformat()}\t{failed.error}")
        print(f"{store.counts().get('failed', 0):,} failed")


@articles_app.command("retry")
def articles_retry(
    ids: Annotated[list[str] | None, typer.Argument(help="Article ids; none: all of them.")] = None,
) -> None:
    """Put failed articles into the inbox again."""
    with _store() as store:
        queued = store.retry(ids or None)
    for accepted in queued:
        print(f"{accepted.article_id}\t{accepted.seq}\tqueued")
    missing = sorted(set(ids or ()) - {accepted.article_id for accepted in queued})
    if missing:
        _fail(f"not failed, or not known: {', '.join(missing)}. yeoul articles failed lists those that are")


sources_app = typer.Typer(no_args_is_help=True, help="Places that are looked at on a schedule.")
app.add_typer(sources_app, name="sources")


@sources_app.command("list")
def sources_list() -> None:
    """List the sources, and what became of their last runs."""
    from pipeline.storage import jobs, sources

    with _store() as store:
        runs = {job.name: job for job in jobs.listed(store.database)}
        for known in sources.listed(store.database):
            job = runs.get(jobs.of_source(known.name))
            last = "never run" if job is None else f"{job.outcome} {_counted(job.counts)} {job.error or ''}"
            count = len(sources.articles_of(store.database, known.name))
            print(f"{known.name}\t{known.kind}\t{known.schedule}\t{count:,} articles\t{last.strip()}")


@sources_app.command("add")
def sources_add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    kind: Annotated[str, typer.Argument(help="folder, feed or sql.")],
    every: Annotated[str, typer.Option(help="60s, 5m, 1h, or five fields of cron.")] = "10m",
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, JSON or text: path=articles, url=https://…/rss")
    ] = None,
) -> None:
    """Add a place where articles come from."""
    from indexers.sources.kinds import parsed_schedule, source_of
    from pipeline.storage import sources

    options = dict(map(_named, option or ()))
    if isinstance(options.get("path"), str):
        options["path"] = str(Path(options["path"]).absolute())
    parsed_schedule(every)
    source_of(name, kind, options)
    with _store() as store:
        sources.add(store.database, name, kind, options, every)
    print(f"{name} is added: it is read within seconds where yeoul serve or yeoul indexers run is at work")


@sources_app.command("run")
def sources_run(name: Annotated[str, typer.Argument(help="Which one.")]) -> None:
    """Read a source now, into the inbox."""
    from indexers.running import run_source
    from indexers.sources.kinds import source_of
    from pipeline.storage import sources

    limit = configuration.load().indexers.queue_limit
    with _store() as store, _interruptible() as stop:
        known = sources.find(store.database, name)
        source = source_of(known.name, known.kind, known.options)
        counts = run_source(store, known, source, queue_limit=limit, stop=stop)
        for line in counts.pop("told", []):
            _tell(line)
        print(f"{_counted(counts)}; {store.queue_length():,} changes wait to be indexed")


@sources_app.command("remove")
def sources_remove(
    name: Annotated[str, typer.Argument(help="Which one.")],
    delete_articles: Annotated[
        bool, typer.Option("--delete-articles", help="And all articles that it brought.")
    ] = False,
) -> None:
    """Forget a source; its articles stay unless you say otherwise."""
    from pipeline.storage import sources

    with _store() as store:
        ids = sources.remove(store.database, name)
        if delete_articles:
            for article_id in ids:
                store.accept_delete(article_id, source=name)
    print(f"{name} is removed; {len(ids):,} articles of it {'are being deleted' if delete_articles else 'stay'}")


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


bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.")
app.add_typer(bench_app, name="bench")


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
            _fail("--pair needs database_url and milvus.uri: a PostgreSQL and a Milvus server with nothing in them")
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
                _fail(f"the rebuild failed: {done.stderr.decode().strip()}")

        figures = measured(
            deployment,
            passages=20_000 if full else 2_000,
            seconds=120 if full else 20,
            rebuild=rebuilt if with_rebuild else None,
        )
    print(figures.table())
    for line in figures.wrong[:10]:
        _tell(line)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(asdict(figures), option=orjson.OPT_INDENT_2))
    if figures.wrong:
        raise SystemExit(1)


indexers_app = typer.Typer(no_args_is_help=True, help="The worker and the scheduler as a process of their own.")
app.add_typer(indexers_app, name="indexers")


@indexers_app.command("run")
def indexers_run() -> None:
    """Drain the inbox and run the sources, until SIGTERM or Ctrl-C; for a Milvus server."""
    from indexers.service import IndexerService
    from pipeline.assembly import Assembly

    settings = configuration.load()
    if settings.milvus_is_lite:
        _fail(
            f"Milvus Lite ({settings.milvus_uri}) belongs to one process, which is yeoul serve: it indexes by itself. "
            "Set milvus.uri to a Milvus server to index in a process of its own"
        )
    assembly = Assembly.open(settings, command="yeoul indexers run", progress=sys.stderr.isatty())
    service = IndexerService(assembly)
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


def _held(settings: Settings) -> Assembly:
    """The assembly of a server; a command that has the folder just now is waited for."""
    from pipeline.assembly import Assembly
    from pipeline.folder import holder_of

    deadline = time.monotonic() + _FOLDER_SECONDS
    while True:
        try:
            return Assembly.open(settings, command="yeoul serve", progress=True)
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
        assembly.lock.announce(Holder.this("yeoul serve", url))
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


def _nothing() -> None:
    pass


def _drained(
    settings: Settings, store: ArticleStore, last_seq: int, analyser: Callable[[], Analyser] | None
) -> Totals | None:
    """Indexes what waits in the inbox, here or, where another process holds the folder, there (then None)."""
    from indexers.worker import Worker
    from pipeline.assembly import Assembly

    told = False
    while True:
        try:
            assembly = Assembly.open(settings, command="yeoul index", analyser=analyser, progress=sys.stderr.isatty())
            break
        except FolderInUse as error:
            if store.settled_up_to() >= last_seq:
                _tell(f"indexed by the process that holds the folder ({error.holder})")
                return None
            if not told:
                _tell(f"waiting for {error.holder}, which holds the folder; what was read is safe in the inbox")
                told = True
            time.sleep(_LOOK_SECONDS)
    try:
        connected = assembly.connect()
        if assembly.lock is not None:  # beside other processes the collection may be switched meanwhile
            connected.keep_up()
        gc.freeze()
        gc.set_threshold(*_BULK_GC)
        with _bar("indexing", "articles", total=store.queue_length()) as advance, _interruptible() as stop:
            worker = Worker(
                assembly.store,
                assembly.ingest,
                alone=assembly.lock is not None,
                attempts=1,  # somebody waits for the answer, and may run the command again
                on_progress=advance,
            )
            totals = worker.drain(stop)
        if stop.is_set():
            raise KeyboardInterrupt
        worker.sweep()
        return totals
    finally:
        assembly.close()


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


@contextmanager
def _store() -> Iterator[ArticleStore]:
    """The state database's articles: open to several processes at once."""
    from pipeline.storage.articles import ArticleStore
    from pipeline.storage.database import StateDatabase

    database = StateDatabase.open(configuration.load().state_url)
    try:
        yield ArticleStore(database)
    finally:
        database.close()


def _recipe_in_use(settings: Settings) -> Mapping[str, Any]:
    from pipeline.storage import manifests
    from pipeline.storage.database import StateDatabase

    database = StateDatabase.open(settings.state_url)
    try:
        in_use = manifests.active(database)
    finally:
        database.close()
    if in_use is None:
        _fail("there is no index yet: yeoul index PATH makes the first one")
    return in_use.recipe


def _named(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"should be NAME=VALUE, is {text!r}", param_hint="--set")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _counted(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in counts.items() if isinstance(value, int))


def _lines_of(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableSource(f"{path} cannot be read: {error}", "give a text file with a query a line") from error


def _folder_is_free(settings: Settings) -> bool:
    """Whether this process would index itself: beside a server on the same folder it would start Kiwi for nothing."""
    from pipeline.folder import FolderLock

    try:
        if settings.milvus_is_lite:
            FolderLock.take(settings.data_dir, "yeoul index").release()
    except FolderInUse:
        return False
    return True


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that the batch under way is finished; the second one interrupts at once."""
    stop = threading.Event()

    def interrupted(_signal: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _operated(command: str, arguments: dict[str, Any], *, as_built: bool = False, **overrides: Any) -> Reply:
    """Runs the operation here or, where another process holds the folder, there; ends this process where it failed."""
    from pipeline.control import Reply, ask
    from pipeline.folder import FolderLock

    settings = configuration.load(**overrides)
    deadline = time.monotonic() + _FOLDER_SECONDS
    while True:
        try:
            if settings.milvus_is_lite:  # looked at before the imports of `_here`, which take seconds
                FolderLock.take(settings.data_dir, f"yeoul {command}").release()
            code, answer = _here(settings, command, arguments, as_built=as_built)
            reply: Reply | None = Reply(code, answer)
        except FolderInUse:
            reply = _asked(settings, command, arguments, ask, deadline)
            if reply is None and time.monotonic() > deadline:
                raise
        if reply is not None:
            if reply.code:
                raise SystemExit(reply.code)
            return reply
        time.sleep(_LOOK_SECONDS)


def _asked(
    settings: Settings, command: str, arguments: dict[str, Any], ask: Callable[..., Reply | None], deadline: float
) -> Reply | None:
    """The reply of the process that serves; None where there is none, or where it is only just starting."""
    try:
        return ask(settings.data_dir, command, arguments, tell=print, warn=_tell)
    except YeoulError as error:
        if error.code == NotReady.code and time.monotonic() < deadline:
            return None
        raise


def _here(settings: Settings, command: str, arguments: dict[str, Any], *, as_built: bool) -> tuple[int, Any]:
    from indexers.operations import OPERATIONS
    from pipeline.assembly import Assembly
    from pipeline.control import Call

    answers: list[Any] = []

    def said(line: Mapping[str, Any]) -> None:
        if "answer" in line:
            answers.append(line["answer"])
        elif "out" in line:
            print(line["out"])
        else:
            _tell(line["err"])

    assembly = Assembly.open(settings, command=f"yeoul {command}", as_built=as_built, progress=sys.stderr.isatty())
    try:
        # A lost collection can be made again from the stored articles; nothing else may take an empty one for the index.
        remake = command == "verify" and arguments["repair"]
        assembly.connect(remake=remake, replaced=command == "rebuild").load()
        code = OPERATIONS[command](assembly, arguments, Call(said))
        return code, answers[-1] if answers else None
    finally:
        assembly.close()


def _print_answer(answer: dict[str, Any], *, explain: bool) -> None:
    import html

    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for number, item in enumerate(answer["items"], start=1):
        snippet = html.unescape(item["snippet"].replace("<mark>", bold).replace("</mark>", plain))
        place = " · ".join(part for part in (item["category"], (item["published_at"] or "")[:10]) if part)
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


@contextmanager
def _bar(label: str, unit: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere; gives the function that advances it."""
    from tqdm import tqdm

    with tqdm(desc=label, unit=f" {unit}", total=total, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(f"yeoul: {message}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
