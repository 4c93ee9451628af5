"""`yeoul sources` and `yeoul articles`: they need the state database alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from indexers.commands.terminal import articles_opened, fail, interruptible, tell
from pipeline import settings as configuration
from pipeline.errors import YeoulError

_BY_WHOM = ": yeoul serve does it, or yeoul indexers run where there is a Milvus server"

articles_app = typer.Typer(no_args_is_help=True, help="Articles that could not be indexed.")


@articles_app.command("failed")
def articles_failed(limit: Annotated[int, typer.Option(min=1, help="So many.")] = 100) -> None:
    """List the articles whose newest change could not be indexed, with the error."""
    with articles_opened() as store:
        for failed in store.failed(limit):
            print(f"{failed.article_id}\t{failed.seq}\t{failed.accepted_at.isoformat()}\t{failed.error}")
        print(f"{store.counts().get('failed', 0):,} failed")


@articles_app.command("retry")
def articles_retry(
    ids: Annotated[list[str] | None, typer.Argument(help="Article ids; none: all of them.")] = None,
) -> None:
    """Put failed articles into the inbox again."""
    with articles_opened() as store:
        queued = store.retry(ids or None)
    for accepted in queued:
        print(f"{accepted.article_id}\t{accepted.seq}\tqueued")
    missing = sorted(set(ids or ()) - {accepted.article_id for accepted in queued})
    if missing:
        fail(f"not failed, or not known: {', '.join(missing)}. yeoul articles failed lists those that are")


sources_app = typer.Typer(no_args_is_help=True, help="Places that are looked at on a schedule.")


@sources_app.command("list")
def sources_list() -> None:
    """List the sources, and what became of their last runs."""
    from pipeline.storage import jobs, sources

    with articles_opened() as store:
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
    every: Annotated[
        str, typer.Option(help="60s, 5m, 1h, or five fields of cron (in this machine's time zone).")
    ] = "10m",
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, JSON or text: path=articles, url=https://…/rss")
    ] = None,
) -> None:
    """Add a place where articles come from."""
    from indexers.sources.kinds import Every, parsed_schedule, source_of
    from pipeline.storage import sources

    options = dict(map(_named, option or ()))
    if isinstance(options.get("path"), str):
        options["path"] = str(Path(options["path"]).absolute())
    schedule = parsed_schedule(every)
    source_of(name, kind, options)
    with articles_opened() as store:
        sources.add(store.database, name, kind, options, every)
    when = "within seconds" if isinstance(schedule, Every) else "at its time"
    print(f"{name} is added: it is read {when} where yeoul serve or yeoul indexers run is at work")


@sources_app.command("run")
def sources_run(name: Annotated[str, typer.Argument(help="Which one.")]) -> None:
    """Read a source now, into the inbox."""
    from indexers.running import reading, run_source
    from indexers.sources.kinds import source_of
    from pipeline.storage import jobs

    limit = configuration.load().indexers.queue_limit
    with articles_opened() as store, interruptible() as stop, reading(store.database, name, stop) as known:
        source = source_of(known.name, known.kind, known.options)
        job, begun = jobs.of_source(name), datetime.now(UTC)
        try:
            counts = run_source(store, known, source, queue_limit=limit, stop=stop)
        except YeoulError as error:
            jobs.noted(store.database, job, begun, {}, str(error))
            raise
        jobs.noted(store.database, job, begun, counts, None)
        for line in counts.pop("told", []):
            tell(line)
        waiting = store.queue_length()
        print(f"{_counted(counts)}; {waiting:,} changes wait to be indexed{_BY_WHOM if waiting else ''}")


@sources_app.command("remove")
def sources_remove(
    name: Annotated[str, typer.Argument(help="Which one.")],
    delete_articles: Annotated[
        bool, typer.Option("--delete-articles", help="And all articles that it brought.")
    ] = False,
) -> None:
    """Forget a source; its articles stay unless you say otherwise."""
    from pipeline.storage import sources

    with articles_opened() as store:
        if delete_articles:  # before the source is forgotten: cut off here, the command can be run again
            for article_id in sources.articles_of(store.database, name):
                store.accept_delete(article_id, source=name)
        ids = sources.remove(store.database, name)
    print(f"{name} is removed; {len(ids):,} articles of it {'are being deleted' if delete_articles else 'stay'}")


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
