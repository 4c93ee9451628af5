"""Article files and folders: which files are read, in which order, and what became of each line.

Rows come from `formats` and `pages`, the rules of their fields from `Article.from_mapping`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexers.sources.formats import LineProblem, Notice, Row, csv_rows, jsonl_rows, parquet_rows
from indexers.sources.pages import html_page, markdown_page
from pipeline.documents import Article
from pipeline.errors import InvalidArticle, TooLarge, UnreadableSource, shown

__all__ = ["SUFFIXES", "LineProblem", "Notice", "files_below", "read_articles", "read_file"]

_Rows = Iterator[Row | LineProblem | Notice]

_TABLES: dict[str, Callable[[Path], _Rows]] = {".jsonl": jsonl_rows, ".csv": csv_rows, ".parquet": parquet_rows}
_PAGES: dict[str, Callable[[Path, str, str], _Rows]] = {".md": markdown_page, ".html": html_page, ".htm": html_page}
SUFFIXES = (*_TABLES, *_PAGES)  # each may be followed by .gz
_CURE = f"give files or folders of {', '.join(SUFFIXES)}, or .gz of them"


@dataclass(frozen=True, slots=True)
class _Placed:
    """An article and the line it stands in."""

    line: int | None
    article: Article


def read_articles(paths: Sequence[Path]) -> Iterator[Article | LineProblem | Notice]:
    """The articles of files and folders (recursively, by name, without hidden ones), and what could not be read.

    Where an id comes twice in one file, the last valid one wins: only it is yielded, the others become a Notice. They are
    never sent, because an earlier line with a later `updated_at` would then win, and because reading the same file again
    would change the article twice instead of changing nothing. So every file of rows is read two times; memory holds its
    ids, not its articles. In several files the later file comes later, and the usual rule of `updated_at` decides.

    An article of an .md or .html without an id has the path below the given folder as its id, without the suffix and with
    ":" for "/" and "#".

    Raises UnreadableSource for a path that does not exist, of no known suffix, or given by name and unreadable; a file
    found in a folder that is unreadable is a LineProblem, and the others are read.
    """
    for path in paths:
        _check_path(path)
    pages: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            for file in files_below(path):
                yield from _surviving(file, read_file(file, path, pages))
        else:
            yield from read_file(path, path.parent, pages)


def _check_path(path: Path) -> None:
    if not path.exists():
        raise UnreadableSource(f"{path} does not exist", _CURE)
    if path.is_dir():
        if next(files_below(path), None) is None:
            raise UnreadableSource(f"the folder {path} holds no file of articles", _CURE)
    elif _suffix(path) not in SUFFIXES:
        raise UnreadableSource(f"{path} is of no known format", _CURE)


def _suffix(path: Path) -> str:
    """The suffix that names the format: `.md` for `a.md` and `a.MD.gz`."""
    return _unpacked_name(path).suffix.lower()


def _unpacked_name(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def files_below(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """The files of articles in `folder`, by name, without hidden ones. A folder that cannot be listed goes to `on_error`."""
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # os.walk goes where this list says
        for name in sorted(names):
            file = Path(parent, name)
            if not name.startswith(".") and _suffix(file) in SUFFIXES:
                yield file


def _surviving(file: Path, found: Iterator[Article | LineProblem | Notice]) -> Iterator[Article | LineProblem | Notice]:
    try:
        yield from found
    except UnreadableSource as error:
        yield LineProblem(file, None, str(error))


def read_file(file: Path, folder: Path, pages: dict[str, Path]) -> Iterator[Article | LineProblem | Notice]:
    """The articles of one file in `folder`, as `read_articles` tells. `pages`: {id: file} of the pages read so far.

    Raises UnreadableSource.
    """
    suffix = _suffix(file)
    if suffix in _TABLES:
        found = _last_of_each_id(file, _TABLES[suffix])
    else:
        found = _told_twice(file, _PAGES[suffix](file, _id_of(file, folder), _unpacked_name(file).stem), pages)
    nothing = True
    for item in found:
        nothing = False
        yield item
    if nothing:
        yield LineProblem(file, None, "the file is empty, there is no article in it: was it written completely?")


def _id_of(file: Path, folder: Path) -> str:
    relative = _unpacked_name(file.relative_to(folder))
    return ":".join(relative.with_suffix("").parts).replace("#", ":")


def _last_of_each_id(file: Path, read: Callable[[Path], _Rows]) -> Iterator[Article | LineProblem | Notice]:
    last = {found.article.id: found.line for found in _placed(file, read(file)) if isinstance(found, _Placed)}
    for found in _placed(file, read(file)):
        if not isinstance(found, _Placed):
            yield found
        elif (winner := last.get(found.article.id, found.line)) == found.line:
            yield found.article
        else:
            yield Notice(
                file, found.line, f"id {shown(found.article.id)} comes again in line {winner}, which replaces this"
            )


def _told_twice(file: Path, rows: _Rows, pages: dict[str, Path]) -> Iterator[Article | LineProblem | Notice]:
    for found in _placed(file, rows):
        if not isinstance(found, _Placed):
            yield found
            continue
        article_id = found.article.id
        if article_id in pages:
            yield Notice(
                file,
                None,
                f"id {shown(article_id)} is also that of {pages[article_id]}: this one replaces it, or give it an id",
            )
        pages[article_id] = file
        yield found.article


def _placed(file: Path, rows: Iterable[Row | LineProblem | Notice]) -> Iterator[_Placed | LineProblem | Notice]:
    """Rows that keep the rules as articles, the others as problems."""
    for row in rows:
        if not isinstance(row, Row):
            yield row
            continue
        try:
            article = Article.from_mapping(row.fields)
        except (InvalidArticle, TooLarge) as error:
            yield LineProblem(file, row.line, str(error))
        else:
            yield _Placed(row.line, article)
