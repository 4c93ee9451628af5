"""What benchmarks ask: the queries of BEIR folders or, without one, those shipped for the samples; distinct, in a fixed order.

Knows nothing of what is searched.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import orjson

from pipeline import samples
from pipeline.errors import InvalidQuery
from pipeline.evaluation.datasets import read_queries
from pipeline.retrieval.query import SearchRequest

_SHIPPED = Path(samples.__file__).parent / "queries.jsonl"
_SEED = 12  # of the order: two runs ask the same queries one after the other


def queries(folders: Sequence[Path]) -> list[str]:
    """Distinct queries of all folders, shuffled; without those that the service refuses. Raises UnreadableSource."""
    texts = [text for folder in folders for text in read_queries(folder).values()] if folders else _shipped()
    distinct = list(dict.fromkeys(_accepted(texts)))
    random.Random(_SEED).shuffle(distinct)
    return distinct


def _shipped() -> list[str]:
    return [orjson.loads(line)["text"] for line in _SHIPPED.read_bytes().splitlines() if line.strip()]


def _accepted(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        try:
            yield SearchRequest.checked(text).text
        except InvalidQuery:
            continue


def path_of(query: str) -> str:
    """What is asked of the server, without its address."""
    return f"/v1/search?{urlencode({'q': query})}"


@dataclass(slots=True)
class Walk:
    """Goes through `texts` one after the other, at the end from the beginning again; `place` is how many were taken so far."""

    texts: Sequence[str]
    place: int = 0

    def take(self) -> str:
        text = self.texts[self.place % len(self.texts)]
        self.place += 1
        return text

    def some(self, n: int) -> list[str]:
        return [self.take() for _ in range(n)]
