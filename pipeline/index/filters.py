"""The one filter of a search, given once and applied to both legs on both engines.

A filter is data: values are compared, never parsed. Each engine compiles it in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions that all hold: equality on four fields, `since` <= published_at < `until` (UTC).

    An article without `published_at` passes neither `since` nor `until`.
    """

    category: str | None = None
    series: str | None = None
    tag: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def empty(self) -> bool:
        return self == Filter()
