"""Texts as the collection stores them, and Milvus expressions over them. Knows neither pymilvus nor passages.

An expression is a string that Milvus parses, and its expression templates exist neither in Milvus Lite nor in servers
before 2.5. So every text that is compared (ids, categories, tags) is *stored* with the characters that could end a
string literal percent-encoded, and a literal is the same encoding between double quotes: it holds no quote, no
backslash and no control character, so a value can never be anything but data, whatever a server's rules of escaping.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pipeline.index.filters import Filter

NO_TIME = -(2**62)  # stored for a missing time: below every time there is, so it passes no `>=`

_UNSAFE = re.compile(r"""[%"'\\\x00-\x1f\x7f]""")
_ENCODED = re.compile("%([0-9A-F]{2})")
_EMPTY = "%"  # the text "", where "" means that there is no text; no encoding is a lone "%"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encoded(value: str | None) -> str:
    """`value` as it is stored; one to one, None included."""
    if value is None:
        return ""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", value) if value else _EMPTY


def decoded(stored: str) -> str | None:
    """The value of which `stored` is the encoding."""
    if "%" not in stored:
        return stored or None
    return "" if stored == _EMPTY else _ENCODED.sub(lambda found: chr(int(found[1], 16)), stored)


def microseconds(moment: datetime | None) -> int:
    """`moment` as whole microseconds since 1970 UTC; NO_TIME for None."""
    return NO_TIME if moment is None else (moment - _EPOCH) // _MICROSECOND


def moment_of(stored: int) -> datetime | None:
    """The time in UTC of which `stored` is the number of microseconds."""
    return None if stored == NO_TIME else _EPOCH + stored * _MICROSECOND


def equal(field: str, value: str) -> str:
    return f"{field} == {_literal(value)}"


def any_of(field: str, values: Iterable[str]) -> str:
    return f"{field} in [{', '.join(map(_literal, values))}]"


def filter_expression(conditions: Filter | None) -> str:
    """The expression for the rows that meet `conditions`; "" (all rows) where there are none."""
    if conditions is None:
        return ""
    parts = [
        equal(name, value)
        for name, value in (
            ("category", conditions.category),
            ("series", conditions.series),
            ("source", conditions.source),
        )
        if value is not None
    ]
    if conditions.tag is not None:
        parts.append(f"array_contains(tags, {_literal(conditions.tag)})")
    if conditions.since is not None:
        parts.append(f"published_at >= {microseconds(conditions.since)}")
    if conditions.until is not None:
        parts.append(f"published_at < {microseconds(conditions.until)}")
        parts.append(f"published_at > {NO_TIME}")
    return " and ".join(parts)


def _literal(value: str) -> str:
    return f'"{encoded(value)}"'
