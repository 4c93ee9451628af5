"""`GET /v1/search`: the unified result.

The hot path: FastAPI's handling of thirteen parameters takes longer than a search of a batch, so one model of pydantic reads
them at once, and gives OpenAPI what it says of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import Url

from api.errors import documented, invalid_field
from api.leaving import gone_of
from api.responses import Json, Plain
from api.schemas import MAX_SEQ, Filtering, SearchAnswer
from api.searches import SEARCH_PATH
from api.security import KEY_OPTIONAL, check_reader
from api.service import Service
from pipeline.documents import parsed_time
from pipeline.errors import InvalidQuery
from pipeline.index.filters import Filter
from pipeline.retrieval.query import MAX_LIMIT, Mode, SearchRequest
from pipeline.retrieval.unified import unified

router = APIRouter(tags=["search"], route_class=Plain)

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class SearchParameters(BaseModel):
    """What stands behind the question mark; of a parameter given twice the last one."""

    model_config = ConfigDict(extra="ignore")

    q: str = Field(min_length=1, description="what to look for: at most 500 characters once normalised")
    limit: int = Field(10, ge=1, le=MAX_LIMIT)
    cursor: str | None = Field(None, description="the next_cursor of the page before")
    mode: Mode = "hybrid"
    category: Filtering | None = None
    series: Filtering | None = None
    tag: Filtering | None = None
    source: Filtering | None = None
    since: Moment | None = None
    until: Moment | None = None
    area: Filtering | None = Field(None, description="only services of this area")
    min_seq: int = Field(0, ge=0, le=MAX_SEQ, description="answer once this change is applied")
    explain: bool = Field(False, description="say why each hit is there")


def _documented_parameters() -> list[dict[str, Any]]:
    schema = SearchParameters.model_json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema["required"],
            "description": described.pop("description", ""),
            "schema": described,
        }
        for name, described in schema["properties"].items()
    ]


@router.get(
    SEARCH_PATH,
    response_model=SearchAnswer,
    openapi_extra={**KEY_OPTIONAL, "parameters": _documented_parameters()},
    responses=documented(401, 422, 429, 500, 503),
)
async def search(request: Request) -> Json:
    """Services and articles for a question, best first."""
    await check_reader(request)
    try:
        asked = SearchParameters.model_validate(parameters(request))
    except ValidationError as error:
        raise invalid_field(error.errors()) from error
    filter_ = Filter(
        category=asked.category,
        series=asked.series,
        tag=asked.tag,
        source=asked.source,
        since=_moment("since", asked.since),
        until=_moment("until", asked.until),
    )
    wanted = SearchRequest.checked(
        asked.q,
        limit=asked.limit,
        mode=asked.mode,
        filter_=None if filter_.empty else filter_,
        cursor=asked.cursor,
    )
    service: Service = request.app.state.service
    result = await service.search(wanted, gone_of(request), min_seq=asked.min_seq)
    return Json(unified(result, query=asked.q, explain=asked.explain))


def parameters(request: Request) -> dict[str, str]:
    """What stands behind the question mark, as `request.query_params` has it, in an eighth of the time."""
    return dict(Url(f"http://_/?{request.scope['query_string'].decode('latin-1')}").query_params())


def _moment(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = parsed_time(value)
    if moment is None:
        rule = "an RFC 3339 time with an offset such as 2026-03-02T09:00:00+09:00 (in an address, + is written %2B)"
        raise InvalidQuery(name, value, rule)
    return moment
