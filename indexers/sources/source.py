"""What a source is: something that is asked again and again what changed since the last time.

A source reads and says what it found; it writes nothing. Whoever runs it puts each batch into the inbox, and only then
keeps the batch's cursor: what was read and not kept is read again, and the inbox makes the same change twice one change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.documents import Article

Cursor = Mapping[str, Any]  # what a source remembers between two runs; JSON
Known = Mapping[str, str]  # the articles that the source delivered and did not remove: article id → its key there


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An article and the key by which the source knows it (a file's path, a row's primary key, an entry's id)."""

    article: Article
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A part of what changed: at most a few hundred articles, some megabytes.

    `removed` are ids of articles that the source has no more. `cursor` stands for having seen this batch and all before
    it; None keeps the one before (half of something that can only be seen as a whole). `problems` say, a line each, what
    could not be used and why; the rest is used all the same. `renamed` are articles that stay as they are under another
    key: id → key.
    """

    found: Sequence[Found] = ()
    removed: Sequence[str] = ()
    cursor: Cursor | None = None
    problems: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A place where articles come from. Made anew for each run, from the options under which it was added."""

    def read(self, cursor: Cursor, known: Known) -> Iterator[Batch]:
        """What changed since `cursor` ({} the first time), in batches, each complete in itself.

        Raises SourceUnavailable where the place does not answer or answers nonsense: the run ends there, what was yielded
        stays, the next run begins at the last cursor. Raises UnreadableSource where only a person can help (a column that is
        missing).
        """
        ...
