"""A question as it was typed → a checked request, and what is understood of its text."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import orjson

from pipeline.cleaning import clean_title
from pipeline.errors import InvalidQuery
from pipeline.index.filters import Filter

Mode = Literal["hybrid", "dense", "lexical"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_QUERY_CHARS = 500
MAX_LIMIT = 100
_SURROGATE = re.compile("[\ud800-\udfff]")  # what a terminal that is not UTF-8 leaves; no store takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """A checked search. `text` is normalised: one line of NFC without control and zero-width characters."""

    text: str
    limit: int = 10
    mode: Mode = "hybrid"
    filter: Filter = field(default_factory=Filter)
    cursor: str | None = None

    @classmethod
    def checked(
        cls,
        text: str,
        *,
        limit: int = 10,
        mode: str = "hybrid",
        filter_: Filter | None = None,
        cursor: str | None = None,
    ) -> SearchRequest:
        """Raises InvalidQuery naming the parameter, the value seen and the rule."""
        normalised = clean_title(text)
        if not normalised:
            raise InvalidQuery("q", text, "some text")
        if len(normalised) > MAX_QUERY_CHARS:
            raise InvalidQuery("q", normalised, f"at most {MAX_QUERY_CHARS} characters ({len(normalised):,} seen)")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidQuery("limit", limit, f"in 1..{MAX_LIMIT}")
        for name, value in asdict(filter_).items() if filter_ is not None else ():
            if isinstance(value, str) and _SURROGATE.search(value):
                raise InvalidQuery(name, value, "Unicode text without lone surrogates")
        for known in MODES:
            if mode == known:
                return cls(text=normalised, limit=limit, mode=known, filter=filter_ or Filter(), cursor=cursor)
        raise InvalidQuery("mode", mode, f"one of {', '.join(MODES)}")

    def question(self, *settings: object) -> str:
        """What a cursor belongs to: everything that decides scores and their order, so not `limit` and `cursor`."""
        conditions = {} if self.filter.empty else asdict(self.filter)
        return orjson.dumps([self.text, self.mode, conditions, [str(s) for s in settings]]).decode()
