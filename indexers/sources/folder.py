"""A folder of article files as a source: files that changed are read, articles that are in no file any more are removed.

How a file is read is the business of `files`. Knows nothing about what a field may hold.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from indexers.sources import options as given
from indexers.sources.files import LineProblem, Notice, files_below, read_file
from indexers.sources.source import Batch, Cursor, Found, Known
from pipeline.documents import Article
from pipeline.errors import SourceUnavailable, UnreadableSource, shown

_BATCH = 500  # articles
_BATCH_CHARS = 4_000_000  # a batch of long articles stays within some 20 MB
_CLOCK_TICK_NS = 2_000_000_000  # 2 s, of FAT: a file written twice in one tick looks the same after the second time
_AHEAD_NS = (
    3_600_000_000_000  # 1 h: a file dated further ahead has a date that somebody set, not a clock a little wrong
)
_CURSOR_EVERY = 0.1  # a cursor names all files, so it is given again only after a tenth more of them

_Stamp = tuple[int, int]  # (time of modification in ns, size in bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """Which folder is read. `allow_empty`: its articles are removed too where it holds no file of articles any more."""

    path: Path
    allow_empty: bool = False

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> FolderOptions:
        """Raises InvalidInput naming the option, the value seen and the rule."""
        given.refuse_unknown(data, tuple(f.name for f in fields(cls)))
        path = Path(given.needed_text(data, "path")).expanduser()
        if not path.is_absolute():
            raise given.refused("path", data["path"], "an absolute path: the service runs in a folder of its own")
        return cls(path=path, allow_empty=given.flag(data, "allow_empty"))


class FolderSource:
    """The articles of all files below a folder; the key of an article is its file's path below the folder.

    A file is read when its time or its size changed; one that was written in the last two seconds is read again the next
    time, and until then no article is missed in it. Nor is one missed in a file that has a line which was not read: the
    article may be that line. Where an id is in several files, the one that changed last counts; when it is gone from there,
    the others are asked.
    """

    def __init__(self, options: FolderOptions) -> None:
        self.options = options

    def read(self, cursor: Cursor, known: Known) -> Iterator[Batch]:
        """As the protocol says; a folder that is the same as before gives nothing.

        Raises SourceUnavailable where the folder cannot be listed, or where it is empty and articles are known;
        UnreadableSource where the path is none of a folder.
        """
        listing = _listing(self.options.path)
        if not listing.is_there and known and not self.options.allow_empty:
            raise SourceUnavailable(
                str(self.options.path),
                f"the folder holds no file of articles, {len(known):,} articles are known",
                "nothing was removed: is a drive not mounted? Where it is meant, set the option 'allow_empty'",
            )
        yield from _Run(self.options.path, listing, cursor, known).batches()


# --- what is there --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Listing:
    """The files of the folder: path below it → stamp. `hidden` are paths of files and folders that cannot be looked at."""

    stamps: dict[str, _Stamp] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        return bool(self.stamps or self.hidden)

    def is_gone(self, key: str) -> bool:
        """Whether there is no such file: what cannot be looked at is not gone."""
        return key not in self.stamps and not any(Path(key).is_relative_to(hidden) for hidden in self.hidden)


def _listing(folder: Path) -> _Listing:
    if folder.exists() and not folder.is_dir():
        raise UnreadableSource(f"{folder} is no folder", "give the folder that the file is in")
    listing = _Listing()

    def hide(error: OSError) -> None:
        path = Path(error.filename)
        if path == folder:
            why = error.strerror or str(error)
            raise SourceUnavailable(str(folder), f"{why}: is a drive not mounted?") from error
        listing.hidden.append(str(path.relative_to(folder)))
        listing.problems.append(f"{path} cannot be looked at: {error.strerror}. Its articles stay as they are")

    for file in files_below(folder, hide):
        key = str(file.relative_to(folder))
        if not _is_text(key):
            listing.problems.append(f"the name of {shown(str(file))} is not UTF-8, it was not read: rename it")
            continue
        try:
            seen = file.stat()
        except FileNotFoundError as error:
            if file.is_symlink():  # to a drive that is not mounted, perhaps
                hide(error)
        except OSError as error:
            hide(error)
        else:
            if stat.S_ISREG(seen.st_mode):
                listing.stamps[key] = (seen.st_mtime_ns, seen.st_size)
    return listing


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- where articles are ---------------------------------------------------------------------------------------------


class _Places:
    """Which files hold which article: nearly always the one by which it is known; sometimes several.

    A file may be named that does not hold the article any more; none that holds it is left out.
    """

    def __init__(self, known: Known, copies: Mapping[str, Iterable[str]]) -> None:
        self._key_of = dict(known)
        self._places = {name: {*keys, known[name]} for name, keys in copies.items() if name in known}

    def put(self, article_id: str, key: str) -> str:
        """The article was read in the file `key`, by which it is known from now on. Returns the one before."""
        before = self._key_of.get(article_id, key)
        if before != key or article_id in self._places:
            self._places.setdefault(article_id, {before}).add(key)
        self._key_of[article_id] = key
        return before

    def take(self, article_id: str, key: str) -> None:
        """The article is not in the file `key`."""
        self._places[article_id] = self.of(article_id) - {key}

    def of(self, article_id: str) -> set[str]:
        return self._places.get(article_id, {self._key_of[article_id]})

    def lost_from(self, article_id: str) -> str | None:
        """The file by which the article is known and in which it is not any more; it may be in another."""
        key = self._key_of[article_id]
        return key if key not in self.of(article_id) else None

    def in_files(self, keys: Collection[str]) -> dict[str, set[str]]:
        """{file: the articles that may be in it}, for each of `keys`."""
        ids: dict[str, set[str]] = {key: set() for key in keys}
        for article_id, key in self._key_of.items():
            for place in self._places.get(article_id, (key,)):
                if place in ids:
                    ids[place].add(article_id)
        return ids

    def copies(self) -> dict[str, list[str]]:
        """What `known` will not say: {article: files} of those that are not only in the file by which they are known."""
        return {name: sorted(keys) for name, keys in self._places.items() if keys and keys != {self._key_of[name]}}


# --- one run --------------------------------------------------------------------------------------------------------


class _Run:
    """First all that changed is read, then it is known what is in no file any more: so a renamed file loses nothing."""

    def __init__(self, folder: Path, listing: _Listing, cursor: Cursor, known: Known) -> None:
        self._folder = folder
        self._listing = listing
        self._before = cursor
        self._known = known
        self._places = _Places(known, cursor.get("copies", {}))
        self._files: dict[str, list[int] | None] = dict(cursor.get("files", {}))  # None: to be read again
        self._late: dict[str, list[int] | None] = {}  # files that lost articles: in the cursor once these are removed
        self._whole: dict[str, set[str]] = {}  # {file: articles in it} of the files read without a problem
        self._broken: set[str] = set()  # the other files read
        self._told_files = len(self._files)
        self._is_due = False  # an article got another file: `known` forgets the one before, only the cursor has it

    def batches(self) -> Iterator[Batch]:
        changed = [key for key, stamp in self._listing.stamps.items() if self._files.get(key) != list(stamp)]
        held = self._places.in_files(changed)
        yield from self._read(dict.fromkeys(changed), held, _Pile(problems=list(self._listing.problems)))
        suspects = self._missed(held) | self._missed(self._places.in_files(self._gone()))
        while asked := self._to_ask(suspects):
            yield from self._read(asked, {}, _Pile())
            self._missed(asked)
        for article_id in suspects:
            if self._places.of(article_id) and (key := self._places.lost_from(article_id)):
                self._late[key] = None  # the other file is broken now: what is not here any more has to be seen again
        yield from self._last(sorted(article_id for article_id in suspects if not self._places.of(article_id)))

    def _read(self, keys: Mapping[str, set[str] | None], held: Mapping[str, set[str]], pile: _Pile) -> Iterator[Batch]:
        """The articles of files: {file: those that are asked for, None for all}. `held`: those known to be in it."""
        for key, wanted in keys.items():
            began = time.time_ns()
            ids: set[str] = set()
            problems: list[LineProblem] = []
            for item in _items(self._folder / key, self._folder):
                if isinstance(item, Article):
                    ids.add(item.id)
                    if wanted is None or item.id in wanted:
                        before = self._places.put(item.id, key)
                        self._is_due |= before != key and before in self._listing.stamps
                        pile.add(Found(article=item, key=key))
                else:
                    pile.problems.append(str(item))
                    problems += [item] if isinstance(item, LineProblem) else []
                if pile.is_full:
                    yield pile.taken(self._cursor_if_due())
            self._note(key, ids, problems, is_settled=self._is_settled(key, began), held=held.get(key, set()))
        if pile.found or pile.problems:
            yield pile.taken(self._cursor_if_due())

    def _note(
        self, key: str, ids: set[str], problems: Sequence[LineProblem], *, is_settled: bool, held: set[str]
    ) -> None:
        is_whole = is_settled and not problems
        if is_whole:
            self._whole[key] = ids
        else:
            self._broken.add(key)
        if any(problem.line is None for problem in problems):
            return  # not even lines could be told apart: it is tried again though nobody may touch it
        stamp = list(self._listing.stamps[key])
        if is_whole and held - ids:
            self._late[key] = stamp
        else:
            self._files[key] = stamp if is_settled else None

    def _is_settled(self, key: str, began: int) -> bool:
        """Whether a file that is written to from now on will look different."""
        modified, size = self._listing.stamps[key]
        try:
            now = (self._folder / key).stat()
        except OSError:
            return False
        return (now.st_mtime_ns, now.st_size) == (modified, size) and not (
            began - _CLOCK_TICK_NS < modified < began + _AHEAD_NS
        )

    def _gone(self) -> set[str]:
        """Files that are no more. One that went just now is spared where a new file could not be read: it may be that one."""
        recorded = self._before.get("files", {})
        copies = (key for keys in self._before.get("copies", {}).values() for key in keys)
        gone = {key for key in {*recorded, *self._known.values(), *copies} if self._listing.is_gone(key)}
        is_unsure = any(key not in recorded for key in self._broken)
        return gone.difference(recorded) if is_unsure else gone

    def _missed(self, held: Mapping[str, set[str]]) -> set[str]:
        """The articles that were looked for in a file and are not there. `held`: {file: articles that were}."""
        missed: set[str] = set()
        for key, ids in held.items():
            if key in self._broken:
                continue
            for article_id in ids - self._whole.get(key, set()):
                self._places.take(article_id, key)
                missed.add(article_id)
        return missed

    def _to_ask(self, suspects: Iterable[str]) -> dict[str, set[str]]:
        """{file: articles} for articles that are not where they were, and may be in a file that was not read."""
        asked: dict[str, set[str]] = {}
        for article_id in suspects:
            unread = (self._places.of(article_id) & self._listing.stamps.keys()).difference(self._whole, self._broken)
            if unread and self._places.lost_from(article_id):
                asked.setdefault(max(unread), set()).add(article_id)
        return dict(sorted(asked.items()))

    def _last(self, removed: list[str]) -> Iterator[Batch]:
        """What was removed, and with it the cursor of the whole run."""
        self._files |= self._late
        self._files = {key: stamp for key, stamp in self._files.items() if not self._listing.is_gone(key)}
        cursor = self._cursor()
        copies = cursor["copies"]
        old = self._before.get("copies", {})
        new = [name for name, keys in copies.items() if name not in old and len(self._listing.stamps.keys() & keys) > 1]
        problems = []
        if new:
            where = ", ".join(copies[new[0]])
            problems = [
                f"{len(new):,} articles are in several files (such as {shown(new[0])} in {where}): the file that changed "
                "last counts"
            ]
        while len(removed) > _BATCH:
            yield Batch(removed=removed[:_BATCH])
            removed = removed[_BATCH:]
        if removed or problems or cursor != self._before:
            yield Batch(removed=removed, problems=problems, cursor=cursor)

    def _cursor(self) -> dict[str, Any]:
        return {"files": dict(self._files), "copies": self._places.copies()}

    def _cursor_if_due(self) -> Cursor | None:
        if not self._is_due and len(self._files) <= self._told_files * (1 + _CURSOR_EVERY):
            return None
        self._is_due = False
        self._told_files = len(self._files)
        return self._cursor()


@dataclass(slots=True)
class _Pile:
    """What becomes the next batch."""

    found: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    chars: int = 0

    def add(self, one: Found) -> None:
        self.found.append(one)
        self.chars += len(one.article.body)

    @property
    def is_full(self) -> bool:
        return len(self.found) >= _BATCH or self.chars >= _BATCH_CHARS or len(self.problems) >= _BATCH

    def taken(self, cursor: Cursor | None) -> Batch:
        batch = Batch(found=self.found, problems=self.problems, cursor=cursor)
        self.found, self.problems, self.chars = [], [], 0
        return batch


def _items(file: Path, folder: Path) -> Iterator[Article | LineProblem | Notice]:
    try:
        yield from read_file(file, folder, {})
    except UnreadableSource as error:
        yield LineProblem(file, None, str(error))
