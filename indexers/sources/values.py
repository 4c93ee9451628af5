"""Values of a database row as fields of an article: what drivers return, and what people store where a type is missing.

What cannot be understood is left as it is, so that `Article.from_mapping` refuses it with the value seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from indexers.sources.formats import fields_of_texts
from pipeline.errors import InvalidArticle

_TIMES = ("published_at", "updated_at")
_MEANT = ("tags", "quality", "visible")  # fields that are read from a text as in a .csv
_NO = frozenset(("", "0", "n", "no", "f", "false"))
_NO_TIME = "0-:. "  # MySQL writes "0000-00-00 00:00:00" for no time


def key_text(value: Any) -> str:
    """A primary key as text: equal keys have equal texts."""
    return value.hex() if isinstance(value, bytes) else str(value)


def is_set(value: Any) -> bool:
    """Whether a column that marks deleted rows does so: true, not 0, a time, a text that does not say no."""
    if isinstance(value, bytes):  # MySQL's BIT(1)
        return any(value)
    if isinstance(value, str):
        word = value.strip().lower()
        return word not in _NO and word.strip(_NO_TIME) != ""
    return bool(value)


def fields_of_values(values: Mapping[str, Any], zone: tzinfo) -> dict[str, Any]:
    """Article fields from the values of their columns; null is left out. Times without an offset are of `zone`.

    Raises InvalidArticle for bytes: which text they are is not for this service to guess.
    """
    known = {name: _field(name, value, zone) for name, value in values.items() if value is not None}
    return {"body": "", **known}


def _field(name: str, value: Any, zone: tzinfo) -> Any:
    if name == "visible" and not isinstance(value, str):
        return _flag(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise InvalidArticle(name, bytes(value), "no bytes: make it a text in a view")
    if name in _TIMES:
        return _time(value, zone)
    if name in _MEANT:
        return _meant(name, value)
    is_text_like = isinstance(value, int | Decimal | UUID) and not isinstance(value, bool)
    return str(value) if is_text_like else value  # SQLite makes numbers of texts, and ids are numbers in most tables


def _flag(value: Any) -> Any:
    if isinstance(value, bytes) and len(value) == 1:
        return bool(value[0])
    return bool(value) if value in (0, 1) else value


def _time(value: Any, zone: tzinfo) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return value
    if isinstance(value, datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=zone)).isoformat()
    if isinstance(value, date):
        return datetime.combine(value, time(), zone).isoformat()
    return value


def _meant(name: str, value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if not isinstance(value, str):
        return value
    if name == "tags" and value.lstrip().startswith("["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            pass  # "[공지], 금리" is a list of a person, not of a program
    return fields_of_texts({name: value}).get(name)
