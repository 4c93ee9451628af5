"""Files into the inbox: reads articles, accepts them in batches, and tells what could not be taken.

Nothing is indexed here: the worker does that, in this process or in the one that serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexers.sources.files import LineProblem, Notice, read_articles
from pipeline.documents import Article
from pipeline.errors import YeoulError
from pipeline.storage.articles import ArticleStore
from pipeline.storage.rows import Accepted

_BATCH = 500  # articles a transaction: the write lock of SQLite is held for some 50 ms
_BATCH_CHARS = 4_000_000  # a batch of long articles stays within some 20 MB


@dataclass(slots=True)
class Report:
    """What came of the files: articles accepted as new or changed, known already, and lines that were refused.

    The accepted changes are among `first_seq` .. `last_seq` (both 0 where there was none).
    """

    accepted: int = 0
    unchanged: int = 0
    refused: int = 0
    first_seq: int = 0
    last_seq: int = 0

    @property
    def read(self) -> int:
        return self.accepted + self.unchanged


def submit(
    store: ArticleStore,
    paths: Sequence[Path],
    *,
    on_problem: Callable[[str], None],
    on_progress: Callable[[int], None] = lambda _articles: None,
) -> Report:
    """Puts every article of `paths` into the inbox. Raises UnreadableSource for a file that cannot be read at all.

    `on_problem` gets a line for each refused line and each notice.
    """
    report = Report()
    for batch in _batches(read_articles(paths), report, on_problem):
        for article, answer in zip(batch, store.accept_many(batch, source="files"), strict=True):
            if isinstance(answer, YeoulError):
                report.refused += 1
                on_problem(f"{article.id}: {answer}")
            else:
                _count(answer, report)
        on_progress(len(batch))
    return report


def _count(answer: Accepted, report: Report) -> None:
    if answer.unchanged:
        report.unchanged += 1
    else:
        report.accepted += 1
        report.first_seq = report.first_seq or answer.seq
    report.last_seq = max(report.last_seq, answer.seq)


def _batches(
    items: Iterable[Article | LineProblem | Notice], report: Report, on_problem: Callable[[str], None]
) -> Iterable[list[Article]]:
    batch: list[Article] = []
    chars = 0
    for item in items:
        if not isinstance(item, Article):
            report.refused += isinstance(item, LineProblem)
            on_problem(str(item))
            continue
        batch.append(item)
        chars += len(item.body)
        if len(batch) >= _BATCH or chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
