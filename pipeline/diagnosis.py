"""What `yeoul doctor` looks at: versions, stores, encoder and index, each with what to do where it is amiss."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pipeline import parts
from pipeline.errors import FolderInUse, ManifestMismatch, NotReady, YeoulError
from pipeline.folder import FolderLock, holder_of
from pipeline.index.collection import Collection
from pipeline.index.manifest import Manifest
from pipeline.settings import Settings
from pipeline.storage import leases, manifests
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.manifests import KnownCollection

_PACKAGES = [
    "yeoul",
    "kiwipiepy",
    "kiwipiepy_model",
    "pymilvus",
    "milvus-lite",
    "torch",
    "sentence-transformers",
    "sqlalchemy",
    "fastapi",
]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the diagnosis; `cure` is empty where `ok`."""

    name: str
    ok: bool
    found: str
    cure: str = ""


def diagnose(settings: Settings) -> Iterator[Check]:
    """Checks in the order in which things depend on each other; never raises a YeoulError."""
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield Check("versions", ok=True, found=f"Python {platform.python_version()}, {versions}")
    yield _check("state database", lambda: _database(settings))
    opened: list[Manifest] = []
    yield _check("kiwi and encoder", lambda: _encoder(settings, opened))
    if opened:
        yield _check("manifest", lambda: _manifest(settings, opened[0]))
    yield _check("collection", lambda: _collection(settings))
    if not settings.milvus_is_lite:  # else it is whoever holds the folder
        yield _check("worker", lambda: _worker(settings))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, found=look())
    except YeoulError as error:
        return Check(name, ok=False, found=error.message, cure=error.hint)


def _database(settings: Settings) -> str:
    database = StateDatabase.open(settings.state_url)
    try:
        store = ArticleStore(database)
        counts = ", ".join(f"{count} {status}" for status, count in sorted(store.counts().items())) or "no articles"
        return f"{database.ping()}: {counts}; {store.queue_length()} changes wait in the inbox"
    finally:
        database.close()


def _worker(settings: Settings) -> str:
    """Raises NotReady where changes wait and nobody is there to index them."""
    database = StateDatabase.open(settings.state_url)
    try:
        holder, waiting = leases.holder(database, "worker"), ArticleStore(database).queue_length()
    finally:
        database.close()
    if holder is None and waiting:
        raise NotReady(f"{waiting:,} changes wait, and nobody indexes them", "start yeoul indexers run, or see its log")
    return f"{holder} indexes" if holder is not None else "none runs, and nothing waits"


def _encoder(settings: Settings, opened: list[Manifest]) -> str:
    """Puts what an index made now would be built with into `opened`."""
    known = _active(settings)
    settings = settings if known is None else parts.settings_with(settings, known.recipe, unless_given=True)
    manifest = parts.PartsHere.open(settings).manifest
    opened.append(manifest)
    return f"{manifest.encoder}, {manifest.dim} dimensions; {manifest.tokenizer}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "(not installed)"


def _manifest(settings: Settings, running: Manifest) -> str:
    """Raises ManifestMismatch where the index in use was made with other settings."""
    known = _active(settings)
    if known is None:
        return "no index yet"
    known.manifest.check(running)
    return f"{known.name} was made with the settings in force"


def _active(settings: Settings) -> KnownCollection | None:
    database = StateDatabase.open(settings.state_url)
    try:
        return manifests.active(database)
    finally:
        database.close()


def _collection(settings: Settings) -> str:
    known = _active(settings)
    if known is None:
        return _store_without_collection(settings)
    with ExitStack() as ends:
        if settings.milvus_is_lite:
            holder = holder_of(settings.data_dir)
            try:
                ends.callback(FolderLock.take(settings.data_dir, "yeoul doctor").release)
            except FolderInUse:
                return f"{known.name} at {settings.milvus_uri}, held by {holder or 'another process'}"
        collection = Collection.open(
            uri=settings.milvus_uri, token=settings.milvus.token, name=known.name, dim=known.manifest.dim, create=False
        )
        ends.callback(collection.close)
        lexical = "BM25 of the store" if collection.supports_lexical else "resident (the store has no sparse vectors)"
        return (
            f"{known.name} at {settings.milvus_uri}, {collection.ping()}: {collection.count():,} rows; engine "
            f"{settings.engine}; candidates of the lexical leg while loading: {lexical}; alpha {known.manifest.alpha}"
        )


def _store_without_collection(settings: Settings) -> str:
    """Raises StoreUnavailable where a server does not answer."""
    if not settings.milvus_is_lite:
        name = f"{settings.milvus.collection}_1"
        with suppress(NotReady, ManifestMismatch):  # both are answers
            Collection.open(
                uri=settings.milvus_uri, token=settings.milvus.token, name=name, dim=1, create=False
            ).close()
    return f"none yet at {settings.milvus_uri}: yeoul index makes it"
