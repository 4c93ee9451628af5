"""Golden queries: do two indexes give much the same answers? Knows nothing of why there are two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import Searcher

_DEPTH = 10  # articles of an answer that are compared
_WORST = 5  # queries that are printed


@dataclass(frozen=True, slots=True)
class Overlap:
    """A query and the share, in 0..1, of its ten best articles that both indexes give; 1 where neither finds any."""

    query: str
    share: float
    gone: tuple[str, ...]
    new: tuple[str, ...]

    @staticmethod
    def mean(overlaps: Sequence[Overlap]) -> float:
        return sum(overlap.share for overlap in overlaps) / len(overlaps) if overlaps else 1.0


def compared(before: Searcher, after: Searcher, query: str) -> Overlap:
    """The answers of both to `query`."""
    return _overlap(query, _ids(before, query), _ids(after, query))


def overlap_table(overlaps: Sequence[Overlap]) -> list[str]:
    """Lines to print: the mean, and the queries whose answers changed most."""
    if not overlaps:
        return ["no golden queries: there is nothing to compare"]
    lines = [f"{len(overlaps)} golden queries: {Overlap.mean(overlaps):.3f} of the ten best articles in common"]
    worst = sorted(overlaps, key=lambda overlap: overlap.share)[:_WORST]
    for one in worst:
        if one.share < 1:
            lines.append(
                f"  {one.share:.2f}  {one.query}  gone: {', '.join(one.gone[:3])}; new: {', '.join(one.new[:3])}"
            )
    return lines


def _overlap(query: str, before: list[str], after: list[str]) -> Overlap:
    most = max(len(before), len(after))
    gone = tuple(a for a in before if a not in after)
    new = tuple(a for a in after if a not in before)
    return Overlap(query, (most - max(len(gone), len(new))) / most if most else 1.0, gone, new)


def _ids(searcher: Searcher, query: str) -> list[str]:
    request = SearchRequest.checked(query[:500], limit=_DEPTH)
    return [hit.article_id for hit in searcher.search(request).hits]
