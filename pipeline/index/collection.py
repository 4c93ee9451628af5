"""The collection: the durable store of passages, one row each, in Milvus Lite or on a Milvus server.

With `schema`, all that knows pymilvus. Knows rows and expressions; knows nothing about articles' visibility, encoders
or fusion: it stores what it is given and proposes candidates.

Consistency. A Strong read waits for the server's next time tick (0.2-0.3 s on 2.3.5, where a Bounded one takes 2-8 ms),
and pymilvus's Session level does not see this process's own deletes there. So: `count` and `iterate_ids` are
Strong; searches are Strong once after a write of this process and Bounded otherwise; `get` and `read` are Bounded and look
again, Strong, for the ids that are missing (a row never changes, as its id holds the revision). Milvus Lite is always exact.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from pymilvus import MilvusClient
from pymilvus.client import entity_helper
from pymilvus.exceptions import MilvusException

from pipeline.documents import Passage, passage_id
from pipeline.errors import InvalidInput, InvalidSetting, NotReady, StoreUnavailable, Unavailable
from pipeline.index import lite, rows, schema
from pipeline.index.expressions import any_of, encoded, filter_expression
from pipeline.index.filters import Filter
from pipeline.index.lite_process import NOISY
from pipeline.index.rows import ARTICLE_ID, DENSE, ID, LEXICAL, PASSAGE_FIELDS, Row
from pipeline.index.schema import BUILD_SECONDS, READ_SECONDS, IndexKind

FloatArray = NDArray[np.float32]

_CONNECT_SECONDS = 3.0  # a server that is up answers in milliseconds
_WRITE_SECONDS = 60.0  # deadline of writing one batch
_DELETE_IDS = 1_000  # ids in one expression; more are no faster
_READ_ROWS = 250  # rows of a read: with every field at its largest (225 kB a row) they still fit into one message
_PAGE_IDS = 16_384  # the most rows a server returns for one query or search
_HNSW_EF = 128  # candidates HNSW keeps while searching, at least; it must be >= k
_SERVER_URI = re.compile(r"(https?|tcp)://\S+|unix:.+")


class Collection:
    """One collection of one store. Made by `Collection.open`; safe for use by several threads.

    Every method raises StoreUnavailable, within seconds, where the store does not answer.
    """

    def __init__(
        self, client: MilvusClient, *, name: str, uri: str, dim: int, index: IndexKind, supports_lexical: bool
    ) -> None:
        self._client = client
        self._folder = lite.folder_of(uri)
        self._uri = uri
        self._index: IndexKind = index
        self._written = self._deleted = 0  # writes by this object, and those of them that deleted
        self._searched = self._read = 0  # how many of those a Strong search, a Strong get has seen
        self._open = True
        self.name = name
        self.dim = dim
        self.supports_lexical = supports_lexical

    @classmethod
    def open(
        cls, *, uri: str, token: str = "", name: str, dim: int, index: IndexKind = "flat", create: bool = True
    ) -> Collection:
        """Opens the collection `name`, made first (for `dim`-dimensional unit vectors) where it does not exist.

        `uri` is a path ending in `.db` (Milvus Lite) or the address of a server. `index` matters only when the
        collection is made. Raises FolderInUse where another process holds the folder, StoreUnavailable where the
        server does not answer, ManifestMismatch where the collection has other fields or another dimension, NotReady
        where it does not exist and `create` is false, InvalidSetting for an unusable `uri`.
        """
        # pymilvus looks at a row's strings character by character, 4% of a bulk load; `rows` has checked them.
        entity_helper.CHECK_STR_ARRAY = False
        client = _connected(uri, token)
        try:
            with _answering(uri):
                index, lexical = _loaded(client, name, dim, index, create=create)
        except BaseException:
            _disconnect(client, uri)
            raise
        return cls(client, name=name, uri=uri, dim=dim, index=index, supports_lexical=lexical)

    def close(self) -> None:
        """Ends the connection; Milvus Lite inside this process writes everything to disk and frees the folder. May be called twice."""
        if self._open:
            self._open = False
            _disconnect(self._client, self._uri)

    def ping(self) -> str:
        """The version of the store, such as `v2.3.5` or `milvus_lite-3.2.2`."""
        with _answering(self._uri):
            return str(self._client.get_server_version(timeout=READ_SECONDS if self._folder else _CONNECT_SECONDS))

    def upsert(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        """Stores `passages` with `vectors` (float32, (len(passages), dim)); a row with the same id is replaced.

        Raises InvalidInput for vectors of another shape, TooLarge for a passage that no row can hold; nothing of the
        batch with such a passage is written.
        """
        if vectors.shape != (len(passages), self.dim) or vectors.dtype != np.float32:
            raise InvalidInput(
                f"vectors should be float32 {(len(passages), self.dim)}, are {vectors.dtype} {vectors.shape}",
                "encode the passages with the encoder of this index",
            )
        for batch in rows.batches(passages, vectors):
            with self._writing():
                self._client.upsert(self.name, batch, timeout=_WRITE_SECONDS)

    def delete(self, ids: Iterable[str]) -> None:
        """Deletes the rows of these passage ids; an id without a row is no error."""
        for batch in rows.chunks(list(ids), _DELETE_IDS):
            with self._writing(deletes=True):
                self._client.delete(self.name, filter=any_of(ID, batch), timeout=_WRITE_SECONDS)

    def delete_replaced(self, keep: Mapping[str, tuple[int | None, int]]) -> None:
        """Deletes, of each article in `keep`, the rows of every revision below the second one given but the first (None: of
        all of them).

        Milvus Lite scans the collection once for a thousand articles, as long as it does for one.
        """
        for batch in rows.chunks(list(keep), _DELETE_IDS):
            stored = [row[ID] for row in self._pages(any_of(ARTICLE_ID, batch))]
            parts = [rows.parts_of(stored_id) for stored_id in stored]
            self.delete([passage_id(*part) for part in parts if _is_replaced(part[1], *keep[part[0]])])

    def flush(self) -> None:
        """Seals what was written, on Milvus Lite, where it is due after a bulk load: rows in its write buffer are searched by
        Python loops, 15 times slower than sealed ones. A server does it by itself, and takes seconds when it is asked."""
        if self._folder is None:
            return
        with self._turn():
            self._client.flush(self.name, timeout=BUILD_SECONDS)

    def drop(self) -> None:
        """Deletes the collection and its aliases, for good."""
        with self._turn():
            for alias in self._aliases(self.name):
                self._client.drop_alias(alias, timeout=_WRITE_SECONDS)
            self._client.drop_collection(self.name, timeout=_WRITE_SECONDS)

    def count(self) -> int:
        """Rows in the collection."""
        with self._turn():
            found = self._client.query(
                self.name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=READ_SECONDS
            )
        return int(found[0]["count(*)"])

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """The passages of `ids`, in that order; those that are not stored are left out."""
        found = {row[ID]: row for row in self._rows(ids, PASSAGE_FIELDS)}
        return [rows.passage_of(found[key]) for key in map(encoded, ids) if key in found]

    def read(self, ids: Sequence[str], *, newest: bool = True) -> tuple[list[Passage], FloatArray]:
        """The passages of `ids`, in that order, without those that are not stored, and their vectors, float32 (n, dim).

        For rows that nobody deletes: one that was deleted a moment ago may still come. Without `newest` one that was written a
        moment ago may not, and nothing waits for it.
        """
        fields = (*PASSAGE_FIELDS, DENSE)
        found = {row[ID]: row for row in self._rows(ids, fields, after_deletes=False, newest=newest)}
        kept = [found[key] for key in map(encoded, ids) if key in found]
        vectors = np.array([row[DENSE] for row in kept], dtype=np.float32).reshape(len(kept), self.dim)
        return [rows.passage_of(row) for row in kept], vectors

    def get_vectors(self, ids: Sequence[str]) -> dict[str, FloatArray]:
        """The vectors of those of `ids` that are stored: id to float32 (dim,)."""
        return {rows.id_of(row): np.asarray(row[DENSE], dtype=np.float32) for row in self._rows(ids, (ID, DENSE))}

    def revisions_of(self, article_ids: Sequence[str]) -> set[tuple[str, int]]:
        """(article id, revision) of every row of these articles; exact, as `iterate_ids`."""
        return {
            rows.parts_of(row[ID])[:2]
            for some in rows.chunks(article_ids, _DELETE_IDS)
            for row in self._pages(any_of(ARTICLE_ID, some))
        }

    def iterate_ids(self) -> Iterator[tuple[str, str, int]]:
        """Passage id, article id and revision of every row, in no order. A row that exists from beginning to end comes exactly
        once; one written or deleted meanwhile may or may not."""
        for row in self._pages(""):
            article_id, revision, _ = rows.parts_of(row[ID])
            yield rows.id_of(row), article_id, revision

    def search_dense(
        self, vector: FloatArray, k: int, conditions: Filter | None = None
    ) -> tuple[list[str], FloatArray]:
        """The ids of the at most `k` passages nearest to `vector` (float32, (dim,)) and their inner products with it,
        float32, best first. Higher is better."""
        if vector.shape != (self.dim,):
            raise InvalidInput(f"a query vector should be ({self.dim},), is {vector.shape}", "encode it as the index")
        params = {"ef": max(k, _HNSW_EF)} if self._index == "hnsw" else {}
        found = self._search(DENSE, np.asarray(vector, dtype=np.float32), k, conditions, "IP", params)
        return [rows.id_of(hit) for hit in found], np.array([hit["distance"] for hit in found], dtype=np.float32)

    def search_lexical(self, terms: Sequence[str], k: int, conditions: Filter | None = None) -> list[str]:
        """The ids of the at most `k` passages that the store's own BM25 finds best for `terms`.

        Candidates only: the statistics of Milvus Lite are those of a segment, so its order is not that of BM25 over
        the corpus. Raises Unavailable where `supports_lexical` is false.
        """
        if not self.supports_lexical:
            raise Unavailable(
                f"collection {self.name!r} at {self._uri} has no lexical index",
                "use a Milvus server from 2.5 on and index again, or keep the lexical leg resident",
            )
        if not terms:
            return []
        return [rows.id_of(hit) for hit in self._search(LEXICAL, " ".join(terms), k, conditions, "BM25", {})]

    def switch_alias(self, alias: str) -> None:
        """From now on `alias` names this collection, whatever it named before; readers see one or the other."""
        change = "create_alias" if self.resolve_alias(alias) is None else "alter_alias"
        with self._turn():
            getattr(self._client, change)(self.name, alias, timeout=_WRITE_SECONDS)

    def resolve_alias(self, alias: str) -> str | None:
        """The name of the collection that `alias` names; None where it names none."""
        with _answering(self._uri):
            return next((name for name in self.list_collections() if alias in self._aliases(name)), None)

    def list_collections(self) -> list[str]:
        """The names of all collections of the store, sorted."""
        with _answering(self._uri):
            return sorted(self._client.list_collections(timeout=READ_SECONDS))

    def _aliases(self, name: str) -> list[str]:
        return list(self._client.list_aliases(name, timeout=READ_SECONDS)["aliases"])

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A call to the store; one at a time where that is Milvus Lite."""
        with _answering(self._uri), lite.turn(self._folder) if self._folder else nullcontext():
            yield

    @contextmanager
    def _writing(self, *, deletes: bool = False) -> Iterator[None]:
        with self._turn():
            try:
                yield
            finally:  # also after a failure: the store may have done it and not answered
                self._written += 1
                self._deleted += deletes

    def _rows(
        self, ids: Sequence[str], fields: Sequence[str], *, after_deletes: bool = True, newest: bool = True
    ) -> list[Row]:
        """The rows of those of `ids` that are stored, each once; `after_deletes`: none that was deleted here; `newest`: also
        those that were written just now, or flushed by another process that uses the same Milvus Lite: those take a second look."""
        deleted = self._deleted
        level = "Strong" if after_deletes and deleted > self._read else "Bounded"
        collected: list[Row] = []
        for some in rows.chunks(list(dict.fromkeys(ids)), _READ_ROWS):
            found = self._matching(any_of(ID, some), fields, level)
            if newest and len(found) < len(some) and (level != "Strong" or self._folder):
                missing = set(some) - {rows.id_of(row) for row in found}
                found += self._matching(any_of(ID, sorted(missing)), fields, "Strong")
            collected += found
        if level == "Strong":
            self._read = max(self._read, deleted)
        return collected

    def _pages(self, condition: str) -> Iterator[Row]:
        """The stored ids of all rows that meet `condition`, page by page in their order (at once in Milvus Lite, which
        scans the whole collection for each query)."""
        if self._folder:
            yield from self._matching(condition, [ID], "Strong")
            return
        last = ""
        while True:
            here = f'{ID} > "{last}"'
            page = self._matching(f"{condition} and {here}" if condition else here, [ID], "Strong", limit=_PAGE_IDS)
            yield from page
            if len(page) < _PAGE_IDS:
                return
            last = max(row[ID] for row in page)

    def _matching(self, expression: str, fields: Sequence[str], level: str, *, limit: int | None = None) -> list[Row]:
        with self._turn():
            found = self._client.query(
                self.name,
                filter=expression,
                output_fields=list(fields),
                consistency_level=level,
                limit=limit,
                timeout=_WRITE_SECONDS if self._folder else READ_SECONDS,  # there it waits for its turn
                strict_float32=True,  # vectors as numpy's, all of an answer at once, instead of lists of Python's numbers
            )
        return list(found)

    def _search(
        self, field: str, question: Any, k: int, conditions: Filter | None, metric: str, params: Row
    ) -> list[Row]:
        written = self._written
        level = "Strong" if written > self._searched else "Bounded"
        with self._turn():
            found = self._client.search(
                self.name,
                data=[question],
                anns_field=field,
                filter=filter_expression(conditions),
                limit=min(k, _PAGE_IDS),
                search_params={"metric_type": metric, "params": params},
                consistency_level=level,
                timeout=READ_SECONDS,
            )
        self._searched = max(self._searched, written)
        return list(found[0])


def _is_replaced(revision: int, kept: int | None, before: int) -> bool:
    return revision != kept and revision < before


def _loaded(client: MilvusClient, name: str, dim: int, index: IndexKind, *, create: bool) -> tuple[IndexKind, bool]:
    """How the dense field of the collection is indexed, and whether it has the lexical field."""
    if not client.has_collection(name, timeout=READ_SECONDS):
        if not create:
            raise NotReady(f"there is no collection {name!r}", "index something first")
        return index, schema.create(client, name, dim, index)
    found = schema.check(client, name, dim, index)
    client.load_collection(name, timeout=BUILD_SECONDS)
    return found


def _connected(uri: str, token: str) -> MilvusClient:
    """A client with a connection of its own, so that closing it really closes."""
    folder = lite.folder_of(uri)
    if folder is None and not _SERVER_URI.fullmatch(uri):
        raise InvalidSetting("milvus.uri", uri, "a path that ends in .db or an address such as http://127.0.0.1:19530")
    _quieten()
    if folder is None:
        with _answering(uri):
            return MilvusClient(uri, token=token, timeout=_CONNECT_SECONDS, dedicated=True)
    lite.take(folder)
    try:
        with _answering(uri):
            return MilvusClient(lite.address_of(uri), timeout=READ_SECONDS, dedicated=True)  # it may be at work
    except BaseException:
        lite.give_back(folder)
        lite.refuse_where_held(folder)  # another process may have been faster
        raise


def _disconnect(client: MilvusClient, uri: str) -> None:
    client.close()
    if folder := lite.folder_of(uri):
        lite.give_back(folder)


def _quieten() -> None:
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Turns what pymilvus raises into StoreUnavailable."""
    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        why = " ".join(str(getattr(error, "message", "") or error or type(error).__name__).split())
        if lite.folder_of(uri) is not None:
            raise lite.unavailable(uri, why) from error
        cure = "start the Milvus server, or correct milvus.uri and milvus.token"
        raise StoreUnavailable("collection", uri, why, cure) from error
