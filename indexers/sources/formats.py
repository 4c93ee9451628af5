"""Files of many articles, read to rows of article fields: .jsonl, .csv, .parquet.

A format says where a row stands and what its fields are called; what they may hold is `Article.from_mapping`'s business.
Rows stream: memory does not grow with the file.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from indexers.sources.encodings import (
    first_byte_not_utf8,
    is_korean_cp949,
    opened,
    opened_text,
    refusal,
)
from pipeline.documents import Article
from pipeline.errors import UnreadableSource, shown

_MAX_LINE_BYTES = 40_000_000  # a body of 5 MB, every character escaped as \uXXXX, with room for the other fields
_ROWS_A_BATCH = 500  # of .csv and .parquet: at 5 MB a body still well below the memory of a small machine
_FIELDS = tuple(field.name for field in fields(Article))
_NEEDED = ("id", "body")
_TRUE = frozenset(("true", "1", "yes", "y"))
_FALSE = frozenset(("false", "0", "no", "n"))
_BOM = b"\xef\xbb\xbf"

_TAG_SEPARATORS = re.compile("[;,]")
_UNCLOSED_QUOTE = re.compile(r"EOF inside string starting at row (\d+)")  # of pandas' C parser; counted from 0
_TOO_MANY_CELLS = re.compile(r"Skipping line (\d+): expected (\d+) fields, saw (\d+)")  # the same; counted from 1


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one article as the file has them. `line` as in LineProblem."""

    line: int | None
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineProblem:
    """Something that was not read, with the cure. The rest of the file is read all the same.

    `line` counts from 1: lines of a .jsonl, rows of a .csv as a spreadsheet counts them (the header is row 1), rows of a
    .parquet; None where it concerns the whole file.
    """

    path: Path
    line: int | None
    problem: str

    def __str__(self) -> str:
        return f"{_place(self.path, self.line)}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that lost nothing. `line` as in LineProblem."""

    path: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{_place(self.path, self.line)}: {self.text}"


def _place(path: Path, line: int | None) -> str:
    return f"{path}, line {line}" if line is not None else str(path)


# --- .jsonl ---------------------------------------------------------------------------------------------------------


def jsonl_rows(path: Path) -> Iterator[Row | LineProblem]:
    """A JSON object a line; blank lines are skipped. Raises UnreadableSource when no line is readable text."""
    encoding = _lines_encoding(path)
    with opened(path) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if line is None:
                yield LineProblem(path, number, f"longer than {_MAX_LINE_BYTES:,} bytes: split the article")
            elif content := line.removeprefix(_BOM if number == 1 else b"").strip():
                yield _json_row(path, number, content, encoding)


def _lines_encoding(path: Path) -> str:
    """A line that is broken is told by number, so one of them does not make the file unreadable; all of them do."""
    offset = first_byte_not_utf8(path)
    if offset is None:
        return "utf-8"
    if is_korean_cp949(path):
        return "cp949"
    with opened(path) as stream:
        if any(line and line.strip() and _is_utf8(line) for line in _lines(stream)):
            return "utf-8"
    raise refusal(path, offset)


def _is_utf8(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()  # a NUL is half a character of UTF-16
    except UnicodeDecodeError:
        return False


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of `stream`; None for one that is too long to be held."""
    while line := stream.readline(_MAX_LINE_BYTES):
        if len(line) < _MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _json_row(path: Path, number: int, line: bytes, encoding: str) -> Row | LineProblem:
    try:
        data = orjson.loads(line.decode(encoding))
    except UnicodeDecodeError as error:
        return LineProblem(path, number, f"not UTF-8 at byte {error.start} of the line: save the file as UTF-8")
    except orjson.JSONDecodeError as error:
        if "surrogate" in error.msg:
            return LineProblem(
                path, number, f"has a lone surrogate (half a character) at column {error.colno}: remove it"
            )
        return LineProblem(
            path, number, f"not JSON ({error.msg}, column {error.colno}): one JSON object a line is read"
        )
    if not isinstance(data, dict):
        return LineProblem(path, number, f"should be a JSON object, is {shown(data)}")
    return Row(number, data)


# --- .csv -----------------------------------------------------------------------------------------------------------


def csv_rows(path: Path) -> Iterator[Row | LineProblem | Notice]:
    """A row an article, the first row names the fields. Cells are text as written: "NA" is "NA", empty is missing.

    Tags are separated by ";" or ",". Raises UnreadableSource when the first row does not name `id` and `body`.
    """
    names: list[str] = []
    for number, row in _csv_records(path, stop=None):
        if isinstance(row, str):
            yield LineProblem(path, number, row)
        elif not names:
            names = [cell.strip() for cell in row]
            yield from _checked_columns(path, names)
        elif any(row):
            cells = {name: cell for name, cell in zip(names, row, strict=True) if name in _FIELDS}
            yield Row(number, {"body": "", **fields_of_texts(cells)})


def _csv_records(path: Path, stop: int | None) -> Iterator[tuple[int, list[str] | str]]:
    """(row number, its cells or what is wrong with it) for every row from 1 on; `stop`: as many good rows at most."""
    from pandas.errors import EmptyDataError, ParserError  # noqa: PLC0415 - 0.5 s, only where there is a .csv

    number, unclosed = 0, 0
    skipped: dict[int, str] = {}
    with opened_text(path) as stream:
        try:
            for chunk in _csv_chunks(stream, stop, skipped):
                for cells in chunk:
                    number += 1
                    while number in skipped:
                        yield number, skipped[number]
                        number += 1
                    yield number, cells
        except EmptyDataError:
            return
        except ParserError as error:
            unclosed = _row_of_unclosed_quote(path, error)
    if unclosed:  # the parser gave up on the whole chunk: what stands before that row is read again
        for number, row in islice(_csv_records(path, stop=unclosed - 1 - len(skipped)), number, None):  # noqa: B020
            yield number, row
    while number + 1 in skipped:
        number += 1
        yield number, skipped[number]
    if unclosed:
        yield unclosed, "a quote that opens in this row is never closed, so nothing from here on was read: close it"


def _csv_chunks(stream: IO[str], stop: int | None, skipped: dict[int, str]) -> Iterator[list[list[str]]]:
    """The rows as wide as the first one, `stop` at most, in chunks; wider ones go to `skipped`: {row number: problem}."""
    from pandas import read_csv  # noqa: PLC0415 - as above
    from pandas.errors import ParserWarning  # noqa: PLC0415

    reader = None
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ParserWarning)
            try:
                if reader is None:
                    reader = read_csv(
                        stream,
                        header=None,  # the first row is a row like the others, so that the numbers are the file's
                        dtype=str,
                        na_filter=False,
                        skip_blank_lines=False,
                        on_bad_lines="warn",
                        chunksize=_ROWS_A_BATCH,
                        nrows=stop,
                    )
                chunk = next(reader, None)
            finally:
                for warning in caught:
                    for number, width, seen in _TOO_MANY_CELLS.findall(str(warning.message)):
                        skipped[int(number)] = f'{seen} cells instead of {width}: put cells that hold a "," in quotes'
        if chunk is None:
            return
        yield chunk.to_numpy().tolist()


def _row_of_unclosed_quote(path: Path, error: ValueError) -> int:
    match = _UNCLOSED_QUOTE.search(str(error))
    if match is None:
        raise UnreadableSource(
            f"{path} is not a CSV file: {error}", "save it as CSV in UTF-8, cells in quotes"
        ) from error
    return int(match[1]) + 1


def _checked_columns(path: Path, names: Sequence[str]) -> Iterator[Notice]:
    """A notice of the columns that no article has. Raises UnreadableSource when one that is needed is missing or twice."""
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise UnreadableSource(
            f"{path} has no column {missing[0]!r}; its columns are {shown(list(names))}",
            "name the columns as the fields of an article, at least id and body",
        )
    twice = [name for name in _FIELDS if names.count(name) > 1]
    if twice:
        raise UnreadableSource(f"{path} has the column {twice[0]!r} more than once", "keep one of them")
    unknown = [name for name in names if name not in _FIELDS]
    if unknown:
        yield Notice(
            path, None, f"columns that are no field of an article are left out: {', '.join(map(repr, unknown))}"
        )


def fields_of_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """Article fields from what a person wrote for them: tags split, numbers and truth values read, empty left out.

    What cannot be read stays a text, so that `Article.from_mapping` refuses it with the value seen.
    """
    return {name: _field_of_text(name, text) for name, text in texts.items() if text}


def _field_of_text(name: str, text: str) -> Any:
    if name == "tags":
        return [tag.strip() for tag in _TAG_SEPARATORS.split(text) if tag.strip()]
    if name == "visible":
        word = text.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else text
    if name == "quality":
        try:
            return float(text)
        except ValueError:
            return text
    return text


# --- .parquet -------------------------------------------------------------------------------------------------------


def parquet_rows(path: Path) -> Iterator[Row | LineProblem | Notice]:
    """A row an article, columns named as its fields. Raises UnreadableSource without columns `id` and `body`."""
    import pyarrow as pa  # noqa: PLC0415 - 0.2 s, only where there is a .parquet
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    with opened(path) as packed, _seekable(path, packed) as stream:
        try:
            file = ParquetFile(stream)
            names = file.schema_arrow.names
            yield from _checked_columns(path, names)
            columns = [name for name in names if name in _FIELDS]
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_A_BATCH, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, _fields_of_values(values))
        except pa.ArrowException as error:
            raise UnreadableSource(f"{path} is not a whole Parquet file: {error}", "write it again") from error


@contextmanager
def _seekable(path: Path, stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """`stream`, or a temporary file of it where it is being unpacked: Parquet is read from its end."""
    if path.suffix.lower() != ".gz":
        yield stream
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked)
        unpacked.seek(0)
        yield unpacked


def _fields_of_values(values: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: _field_of_value(name, value) for name, value in values.items() if not _is_missing(value)}
    return {"body": "", **known}


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124 - NaN, which data frames write for "nothing"


def _field_of_value(name: str, value: Any) -> Any:
    if isinstance(value, date):  # and datetime; without an offset it is refused, as everywhere
        return value.isoformat()
    if name == "id" and isinstance(value, int):
        return str(value)
    return _field_of_text(name, value) if isinstance(value, str) and name == "tags" else value
