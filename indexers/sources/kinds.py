"""What a source can be: its kind with the options of that kind, and its schedule. Both are checked before it is added.

Knows neither how a source is read nor what runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from indexers.sources.source import Source
from pipeline.errors import InvalidInput, shown

_Making = Callable[[str, Mapping[str, Any]], Source]

_INTERVAL = re.compile(r"(\d{1,9})\s*([smhd]?)", re.ASCII)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_SECONDS = 30 * 86_400
_EXAMPLES = "seconds (60, 60s, 5m, 1h, 1d; at most 30d) or five fields of cron (*/10 * * * *)"
_PART = re.compile(r"(?:\*|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days


@dataclass(frozen=True, slots=True)
class Every:
    """Again and again, so many seconds from one begin to the next."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """At the minutes that all fields allow, in the time zone of the machine (`TZ`, /etc/localtime).

    `weekdays`: 0 is Sunday. As in cron, where both `days` and `weekdays` are restricted (None: they are not) one is enough.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...]
    weekdays: tuple[int, ...] | None


Schedule = Every | Cron


# --- kinds ----------------------------------------------------------------------------------------------------------


def source_of(name: str, kind: str, options: Mapping[str, Any]) -> Source:
    """The source, ready to be read; nothing is opened. Raises InvalidInput naming what is wrong, the value and the rule."""
    making = _KINDS.get(kind)
    if making is None:
        raise InvalidInput(f"the kind of a source should be one of {', '.join(KINDS)}, is {shown(kind)}", "correct it")
    return making(name, options)


# Each kind is imported where it is used: the readers of feeds and tables take half a second.


def _folder(_name: str, options: Mapping[str, Any]) -> Source:
    from indexers.sources.folder import FolderOptions, FolderSource  # noqa: PLC0415

    return FolderSource(FolderOptions.from_mapping(options))


def _feed(name: str, options: Mapping[str, Any]) -> Source:
    from indexers.sources.feeds import FeedOptions, FeedSource  # noqa: PLC0415

    return FeedSource(name, FeedOptions.from_mapping(options))


def _sql(_name: str, options: Mapping[str, Any]) -> Source:
    from indexers.sources.sql import SqlOptions, SqlSource  # noqa: PLC0415

    return SqlSource(SqlOptions.from_mapping(options))


_KINDS: Mapping[str, _Making] = {"folder": _folder, "feed": _feed, "sql": _sql}
KINDS = tuple(_KINDS)


# --- schedules ------------------------------------------------------------------------------------------------------


def parsed_schedule(text: str) -> Schedule:
    """The schedule that `text` means: seconds, or five fields of cron. Raises InvalidInput for anything else."""
    plain = text.strip().lower()
    if interval := _INTERVAL.fullmatch(plain):
        seconds = int(interval[1]) * _UNIT_SECONDS[interval[2]]
        if not 1 <= seconds <= _LONGEST_SECONDS:
            raise _refused(text, "that is not between 1 second and 30 days")
        return Every(float(seconds))
    fields = plain.split()
    if len(fields) != 5:
        raise _refused(text, f"that is {len(fields)} fields and no number of seconds")
    try:
        cron = Cron(
            minutes=_values(fields[0], 0, 59),
            hours=_values(fields[1], 0, 23),
            days=_restricted(_values(fields[2], 1, 31), 31),
            months=_values(fields[3], 1, 12, _MONTHS),
            weekdays=_restricted(_weekdays(fields[4]), 7),
        )
    except ValueError as error:
        raise _refused(text, str(error)) from error
    if cron.weekdays is None and cron.days is not None:
        longest = max(_LONGEST_OF_MONTH[month - 1] for month in cron.months)
        if min(cron.days) > longest:
            raise _refused(text, "there is no such day")
    return cron


def _restricted(values: tuple[int, ...], number: int) -> tuple[int, ...] | None:
    return values if len(values) < number else None


def _weekdays(field: str) -> tuple[int, ...]:
    """0 and 7 are Sunday; at the end of a range it is the last day."""
    return tuple(sorted({day % 7 for day in _values(field.replace("-sun", "-7"), 0, 7, _WEEKDAYS)}))


def _values(field: str, least: int, most: int, names: tuple[str, ...] = ()) -> tuple[int, ...]:
    """The numbers that a field of cron allows, in order; `names` are those from `least` on. Raises ValueError."""
    allowed: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is nothing that cron knows")
        first = _number(match[1], least, names) if match[1] else least
        last = _number(match[2], least, names) if match[2] else first if match[1] else most
        step = int(match[3] or 1)
        if not least <= first <= last <= most or not step or (match[3] and match[1] and not match[2]):
            raise ValueError(f"{part!r} is not within {least}-{most}")
        allowed.update(range(first, last + 1, step))
    return tuple(sorted(allowed))


def _number(text: str, least: int, names: tuple[str, ...]) -> int:
    if text.isdecimal():
        return int(text)
    if text not in names:
        raise ValueError(f"{text!r} is not one of {', '.join(names) or 'the numbers'}")
    return least + names.index(text)


def _refused(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"the schedule of a source should be {_EXAMPLES}, is {shown(text)}: {why}", "correct it")
