"""How far a table was read: a value of its watermark column, kept in a cursor exactly and moved in time.

A watermark grows with every change of a row: a version number, or the time of the change. A time may be the database's
own, or a text of it (SQLite has no other; "2026-03-02 09:00:00"). Knows nothing about tables: which of two values is the
higher one is the database's business, which has collations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal

Watermark = int | float | Decimal | str | bytes | datetime | date

# What sorts as it passes: the date, then the clock. What follows (a fraction, an offset) never comes before the second.
_TIME_TEXT = re.compile(r"\d{4}-\d\d-\d\d(?:(?P<between>[ T])\d\d:\d\d:\d\d.*)?")
_NUMBERS = ("int", "float", "decimal")

_READERS: dict[str, Callable[[str], Watermark]] = {
    "int": int,
    "float": float,
    "decimal": Decimal,
    "text": str,
    "bytes": bytes.fromhex,
    "time": datetime.fromisoformat,
    "time with offset": datetime.fromisoformat,
    "date": date.fromisoformat,
}


def is_watermark(value: object) -> bool:
    """Whether `value` has an order to go by: a number, a text, bytes or a time."""
    return isinstance(value, int | float | Decimal | str | bytes | date) and not isinstance(value, bool)


def to_json(value: Watermark) -> list[str]:
    """[kind, text]: numbers too are written as text, because JSON readers round what is long."""
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, date):  # and datetime
        return [_kind(value), value.isoformat()]
    return [_kind(value), repr(value) if isinstance(value, float) else str(value)]


def from_json(data: object) -> Watermark | None:
    """What `to_json` wrote; None for anything else, which is to begin at the beginning."""
    match data:
        case [str(kind), str(written)] if kind in _READERS:
            return _READERS[kind](written)
        case _:
            return None


def is_comparable(one: Watermark, other: Watermark) -> bool:
    """Whether a database can put both in one order. Where it cannot, the column has changed its type."""
    kinds = {"number" if kind in _NUMBERS else kind for kind in (_kind(one), _kind(other))}
    return len(kinds) == 1


def moved(value: Watermark, by: timedelta) -> Watermark:
    """`value` that much earlier or later, written as it is written (a text without fraction); what is no time stays."""
    moment = _moment(value)
    if moment is None:
        return value
    try:
        return _written_like(value, moment + by)
    except OverflowError:
        return value


def not_after(value: Watermark, now: datetime, zone: tzinfo) -> Watermark:
    """`value`, or `now` where it is a time ahead of it. Times without an offset are of `zone`."""
    moment = _moment(value)
    if moment is None:
        return value
    is_ahead = (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)) > now
    if not is_ahead:
        return value
    here = now.astimezone(moment.tzinfo or zone)
    return _written_like(value, here if moment.tzinfo is not None else here.replace(tzinfo=None))


def _kind(value: Watermark) -> str:
    match value:
        case datetime():
            return "time" if value.tzinfo is None else "time with offset"
        case str():
            return "text"
        case _:
            return type(value).__name__.lower()


def _moment(value: Watermark) -> datetime | None:
    match value:
        case datetime():
            return value
        case date():
            return datetime(value.year, value.month, value.day)
        case str() if _TIME_TEXT.fullmatch(value):
            try:
                return datetime.fromisoformat(value)
            except ValueError:
                return None
        case _:
            return None


def _written_like(value: Watermark, moment: datetime) -> Watermark:
    match value:
        case datetime():
            return moment
        case date():
            return moment.date()
        case str() if (match := _TIME_TEXT.fullmatch(value)) and (between := match["between"]):
            return moment.replace(microsecond=0, tzinfo=None).isoformat(between)
        case _:
            return moment.date().isoformat()
