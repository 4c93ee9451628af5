"""`/v1/articles`: changes into the inbox, and what became of them.

Accepting needs the state database alone: changes are taken while the collection is away or the index loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.errors import IndexingFailed, Malformed, content_of, documented
from api.requests import json_object, lines, parsed_object
from api.responses import Json
from api.schemas import AcceptedAnswer, ArticleAnswer, ArticleBody, body_of
from api.security import KEY_OPTIONAL, access_of, key_of, reader, writer
from api.service import Running, Service
from pipeline.documents import MAX_ID_CHARS, Article, checked_id
from pipeline.errors import ArticleNotFound, InvalidArticle, TooLarge, YeoulError
from pipeline.storage.articles import Accepted, ArticleState

router = APIRouter(tags=["articles"])

_BULK_ARTICLES = 200  # of one transaction: others get their turn in between
_BULK_BYTES = 4_000_000  # likewise, and so much is held in memory
_NDJSON = "application/x-ndjson"
_PREFIX = "/v1/articles/"
_ID_SCHEMA: dict[str, Any] = {"minLength": 1, "maxLength": MAX_ID_CHARS, "pattern": r"^[^#/\p{C}]+$"}
_OF_ARTICLE = tuple(ArticleBody.model_fields)
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"model": AcceptedAnswer, "description": "searchable, or gone from results (with wait=true)"},
    202: {"model": AcceptedAnswer, "description": "accepted durably"},
}
_BULK_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {_NDJSON: {"schema": {"type": "string"}}}, "description": "a line each, as BulkLine describes it"}
}
Wait = Annotated[bool, Query(description="answer only when searches see the change")]


async def _id(
    request: Request,
    article_id: Annotated[str, Path(description="percent-encoded UTF-8", json_schema_extra=_ID_SCHEMA)],
) -> str:
    """The id of the address, in NFC. Raises InvalidArticle; Malformed where it is no UTF-8."""
    raw: bytes = request.scope.get("raw_path") or b""
    try:
        unquote_to_bytes(raw.partition(b"?")[0]).decode()
    except UnicodeDecodeError as error:
        raise Malformed("the id in the address is not UTF-8", "percent-encode the id's UTF-8 bytes") from error
    return checked_id(article_id)


ArticleId = Annotated[str, Depends(_id)]


@router.put(
    "/v1/articles/{article_id:path}",
    status_code=202,
    dependencies=[Depends(writer)],
    openapi_extra=body_of(ArticleBody),
    responses=_ACCEPTED | documented(400, 401, 403, 409, 413, 422, 500, 503),
)
async def put(service: Running, request: Request, article_id: ArticleId, wait: Wait = False) -> Json:
    """Publishes or replaces an article."""
    article = _article(await json_object(request), article_id)
    accepted = await run_in_threadpool(service.store.accept, article)
    return await _answered(service, accepted, wait=wait)


@router.get(
    "/v1/articles/{article_id:path}",
    response_model=ArticleAnswer,
    dependencies=[Depends(reader)],
    openapi_extra=KEY_OPTIONAL,
    responses=documented(400, 401, 404, 422, 500, 503),
)
async def get(service: Running, request: Request, article_id: ArticleId) -> Json:
    """The article as it was accepted last, and where it stands. One that is not to be shown: only for who may write."""
    state = await run_in_threadpool(service.store.state, article_id)
    hidden = state.article is not None and not state.article.visible
    if hidden and not access_of(request).may_write(await key_of(request), request):
        raise ArticleNotFound(article_id)
    return Json(_described(state))


@router.delete(
    "/v1/articles/{article_id:path}",
    status_code=202,
    dependencies=[Depends(writer)],
    responses=_ACCEPTED | documented(400, 401, 403, 404, 422, 500, 503),
)
async def delete(service: Running, article_id: ArticleId, wait: Wait = False) -> Json:
    """Takes an article out of the results; what was known of it stays readable as `deleted`."""
    accepted = await run_in_threadpool(service.store.accept_delete, article_id)
    return await _answered(service, accepted, wait=wait)


@router.post(
    "/v1/articles:bulk",
    dependencies=[Depends(writer)],
    openapi_extra={"requestBody": {"required": True, "content": {_NDJSON: {"schema": {"type": "string"}}}}},
    responses=_BULK_ANSWER | documented(401, 403, 500, 503),
    response_class=Response,
)
async def bulk(service: Running, request: Request) -> Response:
    """Publishes many articles: a line of NDJSON each; a bad line fails alone. The answer has a line for each."""
    answers = bytearray()
    held: list[Article | YeoulError] = []
    number = size = 0
    async for line in lines(request):
        held.append(_of_line(line))
        size += len(line) if isinstance(line, bytes) else 0
        if len(held) == _BULK_ARTICLES or size > _BULK_BYTES:
            answers += await _taken(service, held, number)
            number += len(held)
            held, size = [], 0
    answers += await _taken(service, held, number)
    return Response(bytes(answers), media_type=_NDJSON)


def _article(data: dict[str, Any], article_id: str) -> Article:
    """The article of a body for `article_id`. Raises InvalidArticle where the body names another id."""
    given = data.get("id")
    if given is not None and checked_id(given) != article_id:
        raise InvalidArticle("id", given, f"that of the address ({article_id}) or left out")
    return Article.from_mapping({**data, "id": article_id})


async def _answered(service: Service, accepted: Accepted, *, wait: bool) -> Json:
    service.wake()
    content = {
        "id": accepted.article_id,
        "revision": accepted.revision,
        "seq": accepted.seq,
        "status": accepted.status,
    }
    if not wait:
        return Json(content, status_code=202)
    await service.applied(accepted.seq)
    state = await run_in_threadpool(service.store.state, accepted.article_id)
    if state.seq == accepted.seq and state.status == "failed":
        raise IndexingFailed(state.article_id, state.error or "no reason was given")
    return Json(content | {"revision": state.revision, "status": state.status})


def _described(state: ArticleState) -> dict[str, Any]:
    article = state.article.to_mapping() if state.article is not None else {"tags": []}
    return (
        dict.fromkeys(_OF_ARTICLE)
        | article
        | {
            "id": state.article_id,
            "updated_at": state.updated_at,
            "status": state.status,
            "error": state.error,
            "passages": state.passages,
            "revision": state.revision,
            "seq": state.seq,
            "accepted_at": state.accepted_at,
            "indexed_at": state.indexed_at,
        }
    )


def _of_line(line: bytes | TooLarge) -> Article | YeoulError:
    if isinstance(line, TooLarge):
        return line
    try:
        return Article.from_mapping(parsed_object(line, "the line"))
    except YeoulError as error:
        return error


async def _taken(service: Service, batch: Sequence[Article | YeoulError], before: int) -> bytes:
    """Accepts the articles of `batch`, the lines after number `before`; gives the lines of the answer."""
    articles = [item for item in batch if isinstance(item, Article)]
    accepted = iter(await run_in_threadpool(service.store.accept_many, articles, source="bulk") if articles else [])
    service.wake()
    results = [next(accepted) if isinstance(item, Article) else item for item in batch]
    return b"".join(
        orjson.dumps({"line": number} | _of_result(item, result), option=orjson.OPT_APPEND_NEWLINE)
        for number, (item, result) in enumerate(zip(batch, results, strict=True), start=before + 1)
    )


def _of_result(item: Article | YeoulError, result: Accepted | YeoulError) -> dict[str, Any]:
    if isinstance(result, Accepted):
        return {"id": result.article_id, "seq": result.seq, "status": result.status}
    return ({"id": item.id} if isinstance(item, Article) else {}) | content_of(result)
