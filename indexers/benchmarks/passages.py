"""What benchmarks search: the documents of a file or, without one, editions of the shipped articles, and their passages.

Documents are numbered anew, so that any file's ids will do. Knows nothing of what is asked.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import orjson

from indexers.benchmarks.deployment import Deployment
from pipeline import samples
from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import UnreadableSource, YeoulError
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.corpus_index import System, prepared
from pipeline.evaluation.datasets import Corpus, read_corpus

SHIPPED = Path(samples.__file__).parent / "articles.jsonl"
_PIECE = 10_000  # documents that are kept in the cache together: what another size has in common with this one is not made again
_SOME = 1000  # documents that tell how many passages one has
_FEWEST = 8  # times as many passages as documents at first: articles have 4 or so, and none should be too many
_NEAR = 0.99  # of the passages asked for: another round of `yeoul index` would start Kiwi for next to nothing
_FILLED = "filled.json"  # what a kept folder was filled with
_INDEXED = re.compile(r"articles indexed as ([\d,]+) passages")

Document = tuple[str, str, str]  # id, title, text


class NotFilled(YeoulError):
    """A deployment's folder does not hold the passages that are asked for."""

    code = "not_filled"


def documents(path: Path | None) -> Iterator[Document]:
    """Those of a `.jsonl(.gz)` file of _id, title, text that have a text; without a file, editions of the shipped articles
    without end. Raises UnreadableSource."""
    if path is None:
        titled = ((a["title"], a["body"]) for n in count(1) for a in (edition(one, n) for one in shipped()))
    else:
        corpus = read_corpus(path)
        titled = ((title, text) for title, text in zip(corpus.titles, corpus.texts, strict=True) if text.strip())
    return ((f"d{number:07}", title, text) for number, (title, text) in enumerate(titled))


@cache
def shipped() -> list[dict[str, Any]]:
    """The articles that come with Yeoul, as JSON objects of the contract."""
    return [orjson.loads(line) for line in SHIPPED.read_bytes().splitlines() if line.strip()]


def edition(article: dict[str, Any], number: int) -> dict[str, Any]:
    """A variation of a shipped article, with an id and a title of its own."""
    told = {"id": f"{article['id']}-{number}", "title": f"{article['title']} ({number}호)", "updated_at": None}
    return article | told


def batches(
    wanted: Iterator[Document], system: System, kept: ArrayCache, limit: int
) -> Iterator[tuple[list[Passage], FloatArray]]:
    """The first `limit` passages of these documents with their vectors, float32 (n, dim), some thousands at a time; fewer
    where the documents end before. What was made once comes from `kept`."""
    held = 0
    while held < limit and (piece := list(islice(wanted, min(_PIECE, limit - held)))):
        ids, titles, texts = zip(*piece, strict=True)
        for passages, vectors in prepared(Corpus(name="benchmark", ids=ids, titles=titles, texts=texts), system, kept):
            fitting = passages[: limit - held]
            if fitting:  # else only the rest of the piece is made, for the cache
                yield fitting, vectors[: len(fitting)]
            held += len(fitting)


def filled(deployment: Deployment, path: Path | None, passages: int) -> int:
    """Has `yeoul index` fill the folder of a deployment that does not run with about so many passages of `documents(path)`;
    gives how many there are. A folder that was filled with the same is left as it is.

    Raises NotFilled for a folder that holds something else, UnreadableSource.
    """
    note = deployment.folder / _FILLED
    wanted = {"passages_wanted": passages, "file": None if path is None else [path.name, path.stat().st_size]}
    if note.is_file():
        found = orjson.loads(note.read_bytes())
        if {name: found.get(name) for name in wanted} == wanted:
            return int(found["passages"])
        raise NotFilled(
            f"{deployment.folder} was filled with {found}", "give the same --passages and --count, or another --keep"
        )
    if (deployment.folder / "data").exists():
        raise NotFilled(f"{deployment.folder} is not filled to the end", "delete it, or give another --keep")
    held = _indexed(deployment, documents(path), passages)
    if not held:
        raise UnreadableSource(f"{path} has no passages", "give a file of _id, title, text")
    note.write_bytes(orjson.dumps({**wanted, "passages": held}))
    return held


def _indexed(deployment: Deployment, left: Iterator[Document], passages: int) -> int:
    """Indexes until there are about so many. How many passages a document has is known only afterwards: in rounds."""
    held = asked = 0
    while held < passages * _NEAR:
        wanted = round((passages - held) * asked / held) if held else min(_SOME, passages // _FEWEST)
        chosen = list(islice(left, max(1, wanted)))
        if not chosen:
            break
        held += _round(deployment, chosen)
        asked += len(chosen)
    return held


def _round(deployment: Deployment, chosen: Iterable[Document]) -> int:
    """Runs `yeoul index` over these documents; gives their passages. Its progress goes to this process's stderr."""
    file = deployment.folder / "articles.jsonl"
    with file.open("wb") as lines:
        for i, title, text in chosen:
            lines.write(orjson.dumps({"id": i, "title": title, "body": text}, option=orjson.OPT_APPEND_NEWLINE))
    command = [sys.executable, "-m", "yeoul", "index", file.name]
    done = subprocess.run(
        command, cwd=deployment.folder, env=dict(deployment.environment), stdout=subprocess.PIPE, text=True, check=False
    )
    file.unlink()
    if done.returncode:
        raise NotFilled(f"yeoul index ended with {done.returncode} and said {done.stdout!r}", "see its lines above")
    return passages_told(done.stdout)


def passages_told(printed: str) -> int:
    """How many passages `yeoul index` says that it has written; 0 where it wrote none."""
    found = _INDEXED.search(printed)
    return int(found[1].replace(",", "")) if found else 0
