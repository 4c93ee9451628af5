"""The command line, and the only place where `pipeline`, `indexers` and `api` meet.

Each command imports what it needs: Kiwi, torch and the web framework together take seconds to start.
"""

from __future__ import annotations

import gc
import io
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import orjson
import typer

from pipeline import settings as configuration
from pipeline.errors import FolderInUse, NotReady, YeoulError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from indexers.worker import Totals
    from pipeline.assembly import Assembly
    from pipeline.korean.morphemes import Analyser
    from pipeline.retrieval.query import SearchRequest
    from pipeline.storage.articles import ArticleStore

app = typer.Typer(
    help="Korean hybrid search: dense vectors and Kiwi-morpheme BM25 in one explainable ranking.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LOOK_SECONDS = 0.3  # between looks at an inbox that another process drains
_SERVER_SECONDS = 30.0  # for an answer of a running `yeoul serve`
_FOLDER_SECONDS = 10.0  # a search waits so long for another command to end or for a server to come up
_BULK_GC = (1_000_000, 20, 100)  # a bulk load makes millions of tuples and hardly a cycle: by default 8% of its time
_MODES = ("hybrid", "dense", "lexical")


def main() -> None:
    """The console script: an error of ours is one line on stderr and exit code 1."""
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
    settings = configuration.load()
    parameters = {"limit": limit, "mode": mode, "category": category, "explain": explain or not as_json}
    answer = _answer(settings, text, parameters)
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
    from pipeline.assembly import Assembly
    from pipeline.folder import Holder

    settings = configuration.load()
    host, port = host or settings.api.host, port or settings.api.port
    assembly = Assembly.open(settings, command="yeoul serve", progress=True)
    if assembly.lock is not None:
        assembly.lock.announce(Holder.this("yeoul serve", f"http://{host}:{port}"))
    worker = _EmbeddedWorker(assembly)
    application = create_app(settings, assembly=assembly, wake=worker.wake)
    worker.on_commit = application.state.service.notify
    worker.start()
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
        worker.stop()
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


class _EmbeddedWorker:
    """The worker as a thread of the serving process, started when the collection is open."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._wake: Callable[[], None] = lambda: None
        self.on_commit: Callable[[], None] = lambda: None

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake()

    def stop(self) -> None:
        """Ends after the batch under way."""
        self._stop.set()
        self._wake()
        self._thread.join()

    def _run(self) -> None:
        from indexers.worker import Worker

        ingest = None
        while ingest is None and not self._stop.wait(0.0 if ingest else _LOOK_SECONDS):
            try:
                ingest = self._assembly.connected.ingest
            except NotReady:
                continue
        if ingest is not None:
            worker = Worker(
                self._assembly.store,
                lambda: ingest,
                alone=self._assembly.lock is not None,
                poll_seconds=self._assembly.settings.indexers.poll_seconds,
                on_commit=lambda: self.on_commit(),  # noqa: PLW0108 - set after the start
            )
            self._wake = worker.wake
            worker.run(self._stop)


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
        connected.keep_up()
        gc.freeze()
        gc.set_threshold(*_BULK_GC)
        with _bar("indexing", "articles", total=store.queue_length()) as advance, _interruptible() as stop:
            worker = Worker(
                assembly.store,
                lambda: connected.ingest,
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


def _answer(settings: Settings, text: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """From the index or, where another process holds the folder, from its server, or here when that process has ended."""
    from pipeline.folder import FolderLock, holder_of
    from pipeline.index.filters import Filter
    from pipeline.retrieval.query import SearchRequest

    request = SearchRequest.checked(
        text,
        limit=parameters["limit"],
        mode=parameters["mode"],
        filter_=Filter(category=parameters["category"]),
    )
    deadline = time.monotonic() + _FOLDER_SECONDS
    while True:
        try:
            if settings.milvus_is_lite:  # looked at before the imports of `_searched`, which take seconds
                FolderLock.take(settings.data_dir, "yeoul search").release()
            return _searched(settings, request, text, explain=parameters["explain"])
        except FolderInUse:
            holder = holder_of(settings.data_dir)
            answer = (
                _asked_server(settings, holder.url, text, parameters) if holder is not None and holder.url else None
            )
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)


def _searched(settings: Settings, request: SearchRequest, query: str, *, explain: bool) -> dict[str, Any]:
    from pipeline.assembly import Assembly
    from pipeline.retrieval.unified import unified

    assembly = Assembly.open(settings, command="yeoul search", progress=sys.stderr.isatty())
    try:
        connected = assembly.connect()
        connected.load()
        return unified(connected.searcher.search(request), query=query, explain=explain)
    finally:
        assembly.close()


def _asked_server(settings: Settings, url: str, text: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The answer of the `yeoul serve` at `url`; None where nobody listens there."""
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlencode
    from urllib.request import ProxyHandler, Request, build_opener

    given = {"q": text, **{name: value for name, value in parameters.items() if value is not None}}
    given["explain"] = "true" if parameters["explain"] else "false"
    request = Request(f"{url}/v1/search?{urlencode(given)}")
    for key in settings.api.keys[:1]:
        request.add_header("Authorization", f"Bearer {key.key}")
    try:
        # No proxy of the environment: the server is on this machine.
        with build_opener(ProxyHandler({})).open(request, timeout=_SERVER_SECONDS) as response:
            answer: dict[str, Any] = orjson.loads(response.read())
            return answer
    except HTTPError as refused:
        told = orjson.loads(refused.read())["error"]
        raise YeoulError(told["message"], told["hint"]) from refused
    except (URLError, TimeoutError, ConnectionError):
        return None


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
