"""`GET /v1/search`: the unified result."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.errors import documented
from api.responses import Json
from api.schemas import MAX_SEQ, Filtering, SearchAnswer
from api.security import KEY_OPTIONAL, reader
from api.service import Running
from pipeline.documents import parsed_time
from pipeline.errors import InvalidQuery
from pipeline.index.filters import Filter
from pipeline.retrieval.query import MAX_LIMIT, Mode, SearchRequest
from pipeline.retrieval.unified import unified

router = APIRouter(tags=["search"])

Moment = Annotated[str | None, Query(json_schema_extra={"format": "date-time"})]


@router.get(
    "/v1/search",
    response_model=SearchAnswer,
    dependencies=[Depends(reader)],
    openapi_extra=KEY_OPTIONAL,
    responses=documented(401, 422, 500, 503),
)
async def search(
    service: Running,
    q: Annotated[str, Query(min_length=1, description="what to look for: at most 500 characters once normalised")],
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 10,
    cursor: Annotated[str | None, Query(description="the next_cursor of the page before")] = None,
    mode: Mode = "hybrid",
    category: Filtering | None = None,
    series: Filtering | None = None,
    tag: Filtering | None = None,
    source: Filtering | None = None,
    since: Moment = None,
    until: Moment = None,
    area: Annotated[Filtering | None, Query(description="only services of this area")] = None,
    min_seq: Annotated[int, Query(ge=0, le=MAX_SEQ, description="answer once this change is applied")] = 0,
    explain: Annotated[bool, Query(description="say why each hit is there")] = False,
) -> Json:
    """Services and articles for a question, best first."""
    filter_ = Filter(
        category=category,
        series=series,
        tag=tag,
        source=source,
        since=_moment("since", since),
        until=_moment("until", until),
    )
    request = SearchRequest.checked(q, limit=limit, mode=mode, filter_=filter_, cursor=cursor)
    result = await service.search(request, min_seq=min_seq)
    return Json(unified(result, query=q, explain=explain))


def _moment(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = parsed_time(value)
    if moment is None:
        rule = "an RFC 3339 time with an offset such as 2026-03-02T09:00:00+09:00 (in an address, + is written %2B)"
        raise InvalidQuery(name, value, rule)
    return moment
