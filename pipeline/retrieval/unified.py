"""The unified result of a search, as the contract describes it: services and articles in one JSON object."""

from __future__ import annotations

from typing import Any

from pipeline.retrieval.searcher import Hit, SearchResult

_PART_DECIMALS = 9  # of the parts of a score: they add up to it at its own six
_MILLISECOND_DECIMALS = 2


def unified(result: SearchResult, *, query: str, explain: bool) -> dict[str, Any]:
    """The body of `GET /v1/search`, for orjson, which writes times itself. `query` is the text as it was sent."""
    answer: dict[str, Any] = {
        "query": query,
        "understood": {"text": result.request.text, "corrections": []},
        "took_ms": round(result.took_ms, _MILLISECOND_DECIMALS),
        "seq": result.seq,
        "degraded": list(result.degraded),
        "services": [],
        "total": result.total,
        "next_cursor": result.next_cursor,
        "items": [_item(hit, explain=explain) for hit in result.hits],
    }
    if explain:
        answer["timings_ms"] = {name: round(ms, _MILLISECOND_DECIMALS) for name, ms in result.timings.items()}
        answer["degraded_why"] = dict(result.degraded)
    return answer


def _item(hit: Hit, *, explain: bool) -> dict[str, Any]:
    passage = hit.passage
    item: dict[str, Any] = {
        "article_id": hit.article_id,
        "passage_id": hit.scored.passage_id,
        "title": passage.title,
        "url": passage.url,
        "category": passage.category,
        "series": passage.series,
        "tags": passage.tags,
        "source": passage.source,
        "published_at": passage.published_at,
        "snippet": hit.snippet,
        "score": hit.score,
        "passages": [{"passage_id": other.passage_id, "score": other.score} for other in hit.others],
    }
    if explain:
        item["explain"] = {
            "dense": _rounded(hit.scored.dense),
            "lexical": _rounded(hit.scored.lexical),
            "dense_normalised": _rounded(hit.scored.dense_normalised),
            "lexical_normalised": _rounded(hit.scored.lexical_normalised),
            "alpha": _rounded(hit.alpha),
            "lexical_evidence": _rounded(hit.evidence),
            "boosts": dict(hit.boosts),
            "matched_terms": hit.matched_terms,
        }
    return item


def _rounded(value: float | None) -> float | None:
    return round(value, _PART_DECIMALS) if value is not None else None
