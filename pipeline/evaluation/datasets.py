"""Judged queries over a corpus, as BEIR folders keep them: corpus.jsonl, queries.jsonl, qrels/test.tsv, or `.gz` of them.

Thakur et al. 2021, "BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information Retrieval Models". A corpus line
is `{"_id", "title"?, "text"}`, a query line `{"_id", "text"}`, a judgment `query-id<TAB>corpus-id<TAB>score` under a header.
Knows nothing of how documents are indexed or searched.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pipeline.errors import UnreadableSource, shown

_CORPUS, _QUERIES, _QRELS = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
_QREL_COLUMNS = 3
_BOM = b"\xef\xbb\xbf"  # some editors put it before the first line

Item = TypeVar("Item")
Qrels = Mapping[str, Mapping[str, int]]  # query id → document id → grade; relevant from 1 on


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents in columns of one length; `name` is for messages."""

    name: str
    ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content_hash(self) -> str:
        """SHA-256 over ids, titles and texts in their order; not over the name."""
        digest = hashlib.sha256()
        for column in zip(self.ids, self.titles, self.texts, strict=True):
            for value in column:
                data = value.encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Queries, what was judged for them, and the documents to search: those of all `corpora` together.

    `queries` (id → text) are those with a relevant document, in the order of their file; `qrels` has exactly their ids.
    `unknown_queries` counts judgments that name queries which are not there; they are left out.
    """

    name: str
    corpora: tuple[Corpus, ...]
    queries: Mapping[str, str]
    qrels: Qrels
    unknown_queries: int = 0

    @property
    def documents(self) -> int:
        return sum(map(len, self.corpora))

    @property
    def unknown_documents(self) -> int:
        """Judgments that name documents of no corpus. They stay: what is missing counts as not found."""
        known = {i for corpus in self.corpora for i in corpus.ids}
        return sum(document not in known for grades in self.qrels.values() for document in grades)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know about the data."""
        notes = []
        if self.unknown_queries:
            notes.append(f"judgments of queries that are not in {_QUERIES}: {self.unknown_queries:,}, left out")
        if missing := self.unknown_documents:
            notes.append(f"judgments of documents that are not in the corpus: {missing:,}, never found")
        return tuple(notes)

    def with_queries(self, ids: Sequence[str]) -> Dataset:
        """The same corpus with these queries alone, in this order. Raises KeyError for an id that is not there."""
        return replace(self, queries={i: self.queries[i] for i in ids}, qrels={i: self.qrels[i] for i in ids})

    def sampled(self, n: int) -> Dataset:
        """With `n` queries drawn evenly; with all of them where there are no more."""
        return self.with_queries(sample_evenly(list(self.queries), n))


def load(folder: Path) -> Dataset:
    """The BEIR folder `folder`.

    Raises UnreadableSource for a file that is missing or damaged, for a line that is wrong (by its number), and where no
    query has a relevant document.
    """
    corpus = read_corpus(_existing(folder, _CORPUS))
    queries = read_queries(folder)
    path = _existing(folder, _QRELS)
    judged, unknown_queries = _read_qrels(path, queries)
    qrels = {i: judged[i] for i in queries if any(grade > 0 for grade in judged.get(i, {}).values())}
    if not qrels:
        raise UnreadableSource(
            f"no query of {folder} has a relevant document in {path.name}",
            f"judge queries of {_QUERIES} with a score of 1 or more",
        )
    return Dataset(
        name=folder.resolve().name,
        corpora=(corpus,),
        queries={i: queries[i] for i in qrels},
        qrels=qrels,
        unknown_queries=unknown_queries,
    )


def pooled(dataset: Dataset, *distractors: Path) -> Dataset:
    """`dataset` with the documents of these `.jsonl` or `.jsonl.gz` files searched beside its own.

    Raises UnreadableSource as `load` does, and for a document id that is already taken.
    """
    corpora = list(dataset.corpora)
    taken = {i for corpus in corpora for i in corpus.ids}
    for path in distractors:
        more = read_corpus(path)
        for document in more.ids:
            if document in taken:
                raise UnreadableSource(
                    f"{path} has a document {shown(document)} that is in the corpus already",
                    "give every document of a pool an id of its own",
                )
        taken.update(more.ids)
        corpora.append(more)
    return replace(dataset, corpora=tuple(corpora))


def sample_evenly(items: Sequence[Item], n: int) -> list[Item]:
    """`n` of the items, from all over their order: those at `int(i * len / n)`; all where there are no more than `n`.

    Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n should be >= 1, is now {n}")
    if n >= len(items):
        return list(items)
    return [items[i * len(items) // n] for i in range(n)]


def read_corpus(path: Path) -> Corpus:
    """The documents of a `.jsonl` or `.jsonl.gz` file. Raises UnreadableSource, naming the line where there is one."""
    documents: dict[str, tuple[str, str]] = {}
    for number, line in _json_lines(path):
        document = _field(path, number, line, "_id")
        if document in documents:
            raise _bad(path, number, f"the id {shown(document)} stands on an earlier line too", "give each id once")
        title = line.get("title")
        title = "" if title is None else _field(path, number, line, "title")
        documents[document] = (title, _field(path, number, line, "text"))
    if not documents:
        raise UnreadableSource(f"{path} has no documents", "give at least one line of _id, title, text")
    titles, texts = zip(*documents.values(), strict=True)
    return Corpus(name=path.name, ids=tuple(documents), titles=titles, texts=texts)


def read_queries(folder: Path) -> dict[str, str]:
    """The queries (id → text) of the BEIR folder `folder`, judged or not. Raises UnreadableSource as `load` does."""
    path = _existing(folder, _QUERIES)
    queries: dict[str, str] = {}
    for number, line in _json_lines(path):
        query = _field(path, number, line, "_id")
        if query in queries:
            raise _bad(path, number, f"the id {shown(query)} stands on an earlier line too", "give each id once")
        queries[query] = _field(path, number, line, "text")
    return queries


def _read_qrels(path: Path, queries: Mapping[str, str]) -> tuple[dict[str, dict[str, int]], int]:
    """The judgments of known queries, and how many others there are."""
    judged: dict[str, dict[str, int]] = {}
    unknown = 0
    for number, raw in _lines(path):
        try:
            columns = raw.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise _bad(path, number, f"it is not UTF-8 ({error.reason})", "save the file as UTF-8") from error
        if len(columns) != _QREL_COLUMNS:
            raise _bad(
                path, number, f"it has {len(columns)} columns", "give query-id, corpus-id, score, with tabs between"
            )
        query, document, score = columns
        try:
            grade = int(score)
        except ValueError as error:
            if number == 1:
                continue  # the header
            raise _bad(path, number, f"the score {shown(score)} is no whole number", "give 0, 1, 2 …") from error
        if query in queries:
            judged.setdefault(query, {})[document] = grade
        else:
            unknown += 1
    return judged, unknown


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UnreadableSource(
        f"{folder} has no {name} (nor {name}.gz)", f"a BEIR folder holds {_CORPUS}, {_QUERIES} and {_QRELS}"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(_BOM) if number == 1 else line
                if content.strip():
                    yield number, content
    except FileNotFoundError as error:
        raise UnreadableSource(f"there is no file {path}", "check the path") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableSource(
            f"{path} cannot be read ({error})", "check its rights; pack or download it again"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, raw in _lines(path):
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise _bad(path, number, f"it is not JSON ({error})", "write one JSON object a line, in UTF-8") from error
        if not isinstance(line, dict):
            raise _bad(path, number, f"it is {shown(line)}, not an object", "write one JSON object a line")
        yield number, line


def _field(path: Path, number: int, line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    if isinstance(value, str) and (value or name != "_id"):
        return value
    raise _bad(path, number, f"{name!r} should be a text, is {shown(value)}", f"give {name!r} in quotes")


def _bad(path: Path, number: int, why: str, hint: str) -> UnreadableSource:
    return UnreadableSource(f"line {number} of {path} cannot be used: {why}", hint)
