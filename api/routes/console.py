"""`GET /`: the search page. Rendered here, works without scripts; every hit shows why it is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup
from starlette.templating import Jinja2Templates

from api.errors import status_of
from api.leaving import Gone, gone_of
from api.security import access_of, key_of
from api.service import Running, Service
from pipeline.errors import InvalidQuery, YeoulError
from pipeline.index.filters import Filter
from pipeline.retrieval.query import MAX_QUERY_CHARS, MODES, SearchRequest
from pipeline.retrieval.searcher import Hit

router = APIRouter()

_templates = Jinja2Templates(directory=Path(__file__).parent.parent / "console" / "templates")
_PAGE_HITS = 10
_MAX_TERMS = 12  # shown of a hit; a long question matches dozens
_MODE_NAMES = {"hybrid": "함께", "dense": "뜻", "lexical": "낱말"}
_LOADING = "색인을 읽어 들이는 중이라, 저장소에서 바로 찾았습니다."
_PART_NAMES = {
    "dense": "뜻으로 찾기가 쉬고 있어, 낱말로만 찾았습니다.",
    "lexical": "낱말로 찾기가 쉬고 있어, 뜻으로만 찾았습니다.",
    "resident": _LOADING,
    "milvus": _LOADING,
}
_PART_UNKNOWN = "일부 기능이 쉬고 있습니다."
_FAILURES = {
    401: "검색하려면 키가 필요합니다. API로 검색해 주세요.",
    429: "지금 찾는 분이 많습니다. 잠시 뒤에 다시 찾아 주세요.",
    503: "색인을 준비하고 있습니다. 잠시 뒤에 다시 찾아 주세요.",
}
_FAILURE_UNKNOWN = "지금은 찾을 수 없습니다. 잠시 뒤에 다시 찾아 주세요."
_INVALID = {
    "q": f"찾을 말을 {MAX_QUERY_CHARS}자 안에서 적어 주세요.",
    "cursor": "다른 검색의 쪽 번호입니다. 처음부터 다시 찾아 주세요.",
    "mode": "찾는 방법은 함께, 뜻, 낱말 가운데 하나입니다.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one leg gives to a score: `share` = weight · normalised; `width` and `left` place its bar, in 0..100."""

    name: str
    kind: str
    weight: float
    normalised: float
    raw: float
    share: float
    left: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownHit:
    """A hit as the page shows it; `url` is empty unless it is http(s)."""

    title: str
    url: str
    category: str | None
    category_link: str
    date: str
    snippet: Markup
    score: float
    parts: tuple[Part, ...]
    boosts: tuple[tuple[str, float], ...]
    terms: tuple[str, ...]
    more_terms: int


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page(service: Running, request: Request) -> Response:
    """The page, with results where `q` is given."""
    form = {name: request.query_params.get(name, "") for name in ("q", "mode", "category", "cursor")}
    context: dict[str, Any] = {"form": form, "modes": _MODE_NAMES, "max_chars": MAX_QUERY_CHARS}
    status = 200
    if "q" in request.query_params:
        try:
            access_of(request).check_read(await key_of(request))
            context |= await _results(service, form, gone_of(request))
        except YeoulError as error:
            status = status_of(error)
            context["problem"] = _told(error, status)
    return _templates.TemplateResponse(request, "search.html", context, status_code=status)


async def _results(service: Service, form: dict[str, str], gone: Gone) -> dict[str, Any]:
    checked = SearchRequest.checked(
        form["q"],
        limit=_PAGE_HITS,
        mode=form["mode"] or MODES[0],
        filter_=Filter(category=form["category"].strip() or None),
        cursor=form["cursor"] or None,
    )
    result = await service.search(checked, gone)
    return {
        "result": result,
        "hits": [_shown(hit, form) for hit in result.hits],
        "notices": [_PART_NAMES.get(part, _PART_UNKNOWN) for part in result.degraded],
        "next_page": _link(form, cursor=result.next_cursor) if result.next_cursor else "",
        "first_page": _link(form, cursor="") if form["cursor"] else "",
        "without_category": _link(form, cursor="", category="") if form["category"] else "",
    }


def _told(error: YeoulError, status: int) -> str:
    if isinstance(error, InvalidQuery):
        return _INVALID.get(error.field, _FAILURE_UNKNOWN)
    return _FAILURES.get(status, _FAILURE_UNKNOWN)


def _shown(hit: Hit, form: dict[str, str]) -> ShownHit:
    passage = hit.passage
    matched = hit.matched_terms
    return ShownHit(
        title=passage.title or hit.article_id,
        url=passage.url if passage.url and passage.url.lower().startswith(("https://", "http://")) else "",
        category=passage.category,
        category_link=_link(form, cursor="", category=passage.category or ""),
        date=passage.published_at.strftime("%Y. %-m. %-d.") if passage.published_at is not None else "",
        snippet=Markup(hit.snippet),  # escaped where it was made, but for <mark>
        score=hit.score,
        parts=_parts(hit),
        boosts=tuple(hit.boosts.items()),
        terms=tuple(matched[:_MAX_TERMS]),
        more_terms=max(0, len(matched) - _MAX_TERMS),
    )


def _parts(hit: Hit) -> tuple[Part, ...]:
    """The two legs as they add up to the score; a leg that is off is left out."""
    scored, parts, left = hit.scored, [], 0.0
    legs = (
        ("뜻", "dense", hit.alpha, scored.dense_normalised, scored.dense),
        ("낱말", "lexical", 1 - hit.alpha, scored.lexical_normalised, scored.lexical),
    )
    for name, kind, weight, normalised, raw in legs:
        if normalised is None or raw is None:
            continue
        share = weight * normalised
        width = min(max(share * 100, 0.0), 100 - left)
        parts.append(
            Part(
                name=name,
                kind=kind,
                weight=weight,
                normalised=normalised,
                raw=raw,
                share=share,
                left=round(left, 2),
                width=round(width, 2),
            )
        )
        left += width
    return tuple(parts)


def _link(form: dict[str, str], **changes: str | None) -> str:
    """The page's address for this form with `changes`; empty fields are left out."""
    return "/?" + urlencode({name: value for name, value in {**form, **changes}.items() if value})
