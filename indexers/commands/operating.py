"""Commands that need the index: done here or, where another process holds the folder, there."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexers.commands.terminal import fail, tell
from pipeline import settings as configuration
from pipeline.errors import FolderInUse, InvalidSetting, NotReady, StoreUnavailable, UnreadableSource, YeoulError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.assembly import Assembly
    from pipeline.control import Reply

_LOOK_SECONDS = 0.3  # between attempts to get at a folder that another command has
_ATTEMPTS, _STORE_SECONDS = 5, 5.0  # of a rebuild or a rollback while a store is away, and between two
_NICENESS = 15  # of a rebuild that is a process of its own: who answers on the same machine goes first, then indexers
_FOLDER_SECONDS = 15.0  # a command waits so long for another command to end or for a server to come up


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what does not agree.")] = False,
) -> None:
    """Check that registry, collection, change log and resident index agree."""
    operated("verify", {"repair": repair})


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
    os.nice(_NICENESS)  # before anything else: starting takes a core for seconds
    _end_in_order()
    from pipeline.parts import recipe_of, settings_with

    overrides: dict[str, Any] = {"encoder": {"model": encoder}} if encoder is not None else {}
    settings = configuration.load(**overrides)
    recipe = recipe_of(settings_with(settings, _recipe_in_use(settings), unless_given=True))
    queries = _lines_of(golden) if golden is not None else []
    asked = {"recipe": recipe, "queries": queries, "min_overlap": min_overlap, "prune": prune}
    operated("rebuild", asked, as_built=True)


def rollback(
    golden: Annotated[Path | None, typer.Option(help="Queries to compare both by, one a line.")] = None,
    min_overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Of their ten best articles, so many the same.")
    ] = 0.0,
) -> None:
    """Put the index in use that was before the last rebuild, with every change since."""
    _end_in_order()
    queries = _lines_of(golden) if golden is not None else []
    operated("rollback", {"queries": queries, "min_overlap": min_overlap}, as_built=True)


def operated(command: str, arguments: dict[str, Any], *, as_built: bool = False, **overrides: Any) -> Reply:
    """Runs the operation here or, where another process holds the folder, there (`as_built`: beside it, here); ends this
    process where it failed."""
    from pipeline.control import Reply, ask
    from pipeline.folder import FolderLock

    settings = configuration.load(**overrides)
    deadline = time.monotonic() + _FOLDER_SECONDS
    left, beside = (_ATTEMPTS if as_built else 1), None
    while True:
        try:
            if settings.milvus_is_lite and beside is None:  # before the imports of `_here`, which take seconds
                FolderLock.take(settings.data_dir, f"yeoul {command}").release()
            code, answer = _here(settings, command, arguments, as_built=as_built, beside=beside)
            reply: Reply | None = Reply(code, answer)
        except FolderInUse:
            reply = _asked(settings, "store" if as_built else command, {} if as_built else arguments, ask, deadline)
            if reply is None and time.monotonic() > deadline:
                raise
            if reply is not None and as_built:
                beside, reply = reply.answer, None
        except YeoulError as error:
            left -= 1
            if error.code != StoreUnavailable.code or not left:  # a rebuild of hours outlives the restart of a store
                raise
            tell(f"{error}. It goes on in {_STORE_SECONDS:g} s")
            time.sleep(_STORE_SECONDS)
            if beside is not None:  # the folder is left to the server, which may start again, with another address
                beside = _address_anew(settings, ask) or beside
            continue
        if reply is not None:
            if reply.code:
                raise SystemExit(reply.code)
            return reply
        time.sleep(_LOOK_SECONDS)


def _address_anew(settings: Settings, ask: Callable[..., Reply | None]) -> dict[str, str] | None:
    """Where the Milvus Lite of the process that serves is by now; None where nobody says."""
    try:
        reply = _asked(settings, "store", {}, ask, time.monotonic() + _FOLDER_SECONDS)
    except YeoulError:
        return None
    return reply.answer if reply is not None else None


def _asked(
    settings: Settings, command: str, arguments: dict[str, Any], ask: Callable[..., Reply | None], deadline: float
) -> Reply | None:
    """The reply of the process that serves; None where there is none, or where it is only just starting."""
    try:
        return ask(settings.data_dir, command, arguments, tell=print, warn=tell)
    except YeoulError as error:
        if error.code == NotReady.code and time.monotonic() < deadline:
            return None
        raise


def _here(
    settings: Settings, command: str, arguments: dict[str, Any], *, as_built: bool, beside: Mapping[str, str] | None
) -> tuple[int, Any]:
    """`beside`: what the process that serves says of its store."""
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
            tell(line["err"])

    assembly = Assembly.open(
        settings,
        command=f"yeoul {command}",
        as_built=as_built,
        beside=beside["address"] if beside is not None else "",
        progress=sys.stderr.isatty(),
    )
    try:
        if beside is not None:
            _check_same(assembly, beside["collection"])
        # A lost collection can be made again from the stored articles; nothing else may take an empty one for the index.
        remake = command == "verify" and arguments["repair"]
        connected = assembly.connect(remake=remake, replaced=as_built)
        connected.load()
        if command == "search":
            connected.searcher.warm_up()  # the time that it tells is a search's, without the start of this process
        code = OPERATIONS[command](assembly, arguments, Call(said))
        return code, answers[-1] if answers else None
    finally:
        assembly.close()


def _check_same(assembly: Assembly, collection: str) -> None:
    """Another database may say of the server's collections what is not so."""
    from pipeline.storage import manifests

    in_use = manifests.active(assembly.database)
    if in_use is None or in_use.name != collection:
        raise InvalidSetting(
            "database_url",
            str(assembly.database.engine.url),  # without the password
            f"the database of the process that serves, which has {collection!r} in use "
            f"({'nothing' if in_use is None else repr(in_use.name)} here)",
        )


def _end_in_order() -> None:
    """Told to end, it says what it leaves behind as it does after Ctrl-C. `nohup` stays what it is."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def _recipe_in_use(settings: Settings) -> Mapping[str, Any]:
    from pipeline.storage import manifests
    from pipeline.storage.database import StateDatabase

    database = StateDatabase.open(settings.state_url)
    try:
        in_use = manifests.active(database)
    finally:
        database.close()
    if in_use is None:
        fail("there is no index yet: yeoul index PATH makes the first one")
    return in_use.recipe


def _lines_of(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableSource(f"{path} cannot be read: {error}", "give a text file with a query a line") from error
