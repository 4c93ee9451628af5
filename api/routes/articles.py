"""`/v1/articles`: changes into the inbox, and what became of them.

Accepting needs the state database alone: changes are taken while the collection is away or the index loads. How many are
taken is up to `api.limits`; what is refused so is 429, and can be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.audit import record_of
from api.errors import IndexingFailed, Malformed, content_of, documented
from api.limits import BoundedRequest, Limits, limits_of
from api.requests import json_object, lines, parsed_object
from api.responses import Json
from api.schemas import AcceptedAnswer, ArticleAnswer, ArticleBody, body_of
from api.security import KEY_OPTIONAL, access_of, caller_of, key_of, reader, writer
from api.service import Running, Service
from pipeline.documents import MAX_ID_CHARS, Article, checked_id
from pipeline.errors import ArticleNotFound, InvalidArticle, QueueFull, TooLarge, YeoulError
from pipeline.storage.rows import Accepted, ArticleState

router = APIRouter(tags=["articles"])

_BULK_ARTICLES = 200  # of one transaction: others get their turn in between
_BULK_BYTES = 4_000_000  # likewise, and so much is held in memory
_ANSWER_BYTES = 4_000_000  # of a bulk's answer in memory; a longer one goes to a temporary file
_CHUNK_BYTES = 65_536  # of an answer that is sent
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


async def one_write(request: Request) -> None:
    """Takes one write of the caller's rate, before the body is read. Raises TooManyRequests."""
    limits_of(request).rate.check(caller_of(request).identity)


@router.put(
    "/v1/articles/{article_id:path}",
    status_code=202,
    dependencies=[Depends(writer), Depends(one_write)],
    openapi_extra=body_of(ArticleBody),
    responses=_ACCEPTED | documented(400, 401, 403, 409, 413, 422, 429, 500, 503),
)
async def put(service: Running, request: Request, article_id: ArticleId, wait: Wait = False) -> Json:
    """Publishes or replaces an article."""
    article = _article(await json_object(request), article_id)
    accepted = await run_in_threadpool(_accepted, request, partial(service.store.accept, article))
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
    dependencies=[Depends(writer), Depends(one_write)],
    responses=_ACCEPTED | documented(400, 401, 403, 404, 422, 429, 500, 503),
)
async def delete(service: Running, request: Request, article_id: ArticleId, wait: Wait = False) -> Json:
    """Takes an article out of the results; what was known of it stays readable as `deleted`."""
    accepted = await run_in_threadpool(_accepted, request, partial(service.store.accept_delete, article_id))
    return await _answered(service, accepted, wait=wait)


@router.post(
    "/v1/articles:bulk",
    dependencies=[Depends(writer)],
    openapi_extra={"requestBody": {"required": True, "content": {_NDJSON: {"schema": {"type": "string"}}}}},
    responses=_BULK_ANSWER | documented(401, 403, 413, 429, 500, 503),
    response_class=Response,
)
async def bulk(service: Running, request: Request) -> Response:
    """Publishes many articles: a line of NDJSON each; a bad line fails alone. The answer has a line for each.

    Lines beyond a limit are refused (`queue_full`, `too_many_requests`: send them again) and the others taken; where
    nothing was taken for this reason the whole answer is that error. What follows the largest size is one line more.
    """
    bounded = BoundedRequest(request, service.settings.api.max_bulk_bytes)
    under_way = _Bulk(service, request)
    try:
        await _read_into(under_way, bounded, service.wake)
        return under_way.answer()
    except BaseException:  # a client that goes away cancels: the answer may be a file
        under_way.close()
        raise


async def _read_into(under_way: _Bulk, request: Request, wake: Callable[[], None]) -> None:
    async def take() -> None:
        await run_in_threadpool(under_way.take, held)
        wake()

    held: list[Article | YeoulError] = []
    size = 0
    try:
        async for line in lines(request):
            held.append(_of_line(line))
            size += len(line) if isinstance(line, bytes) else 0
            if len(held) == _BULK_ARTICLES or size > _BULK_BYTES:
                await take()
                held, size = [], 0
    except TooLarge as error:
        await take()
        under_way.refuse_the_rest(error)
        return
    await take()


def _article(data: dict[str, Any], article_id: str) -> Article:
    """The article of a body for `article_id`. Raises InvalidArticle where the body names another id."""
    given = data.get("id")
    if given is not None and checked_id(given) != article_id:
        raise InvalidArticle("id", given, f"that of the address ({article_id}) or left out")
    return Article.from_mapping({**data, "id": article_id})


def _accepted(request: Request, accept: Callable[[], Accepted]) -> Accepted:
    """`accept()`, unless the inbox is full of such changes (QueueFull): then nothing is done. May block."""
    limits = limits_of(request)
    limits.pushes.check()
    accepted = accept()
    limits.pushed(int(not accepted.unchanged))
    record_of(request).seq = accepted.seq
    return accepted


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


class _Bulk:
    """A bulk call under way: takes batches of its lines and keeps the answer, in a temporary file where it is long."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service = service
        self._limits: Limits = limits_of(request)
        self._caller = caller_of(request).identity
        self._record = record_of(request)
        self._record.lines_taken = self._record.lines_refused = 0
        self._refusal: YeoulError | None = None  # the first limit that was met
        self._answers = SpooledTemporaryFile(_ANSWER_BYTES)  # noqa: SIM115 - closed by `close` or by the answer

    def take(self, batch: Sequence[Article | YeoulError]) -> None:
        """Accepts the articles of `batch` as far as the limits let, and writes the lines of the answer. May block."""
        articles = [item for item in batch if isinstance(item, Article)]
        accepted = iter(self._accepted(articles))
        for item in batch:
            self._write(item, next(accepted) if isinstance(item, Article) else item)

    def refuse_the_rest(self, error: YeoulError) -> None:
        """One line of the answer for everything that is not read."""
        self._refusal = self._refusal or error
        self._write(error, error)

    def answer(self) -> Response:
        """The lines. Raises the limit that was met, where it let nothing through."""
        if self._refusal is not None and not self._record.lines_taken:
            raise self._refusal
        return _Lines(self._answers)

    def close(self) -> None:
        self._answers.close()

    def _accepted(self, articles: Sequence[Article]) -> list[Accepted | YeoulError]:
        granted, refusal = self._granted(len(articles))
        accepted = self._service.store.accept_many(articles[:granted], source="bulk") if granted else []
        self._limits.queue.add(sum(isinstance(one, Accepted) and not one.unchanged for one in accepted))
        if refusal is None:
            return accepted
        self._refusal = self._refusal or refusal
        return [*accepted, *[refusal] * (len(articles) - granted)]

    def _granted(self, wanted: int) -> tuple[int, YeoulError | None]:
        """How many of `wanted` articles may be taken now, and what forbids the others."""
        if not wanted:
            return 0, None
        try:
            self._limits.queue.check()
        except QueueFull as full:
            return 0, full
        granted = self._limits.rate.take(self._caller, wanted)
        return granted, None if granted == wanted else self._limits.rate.refusal(self._caller)

    def _write(self, item: Article | YeoulError, result: Accepted | YeoulError) -> None:
        record = self._record
        taken, refused = record.lines_taken or 0, record.lines_refused or 0
        if isinstance(result, Accepted):
            record.lines_taken = taken + 1
            if not result.unchanged:
                record.first_seq = record.first_seq or result.seq
                record.last_seq = result.seq
        else:
            record.lines_refused = refused + 1
        line = {"line": taken + refused + 1} | _of_result(item, result)
        self._answers.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


class _Lines(StreamingResponse):
    """A whole answer in a file, sent from its beginning. It is not sent while lines come in: many clients read nothing
    before they have sent everything, and both sides would wait for each other.
    """

    def __init__(self, file: SpooledTemporaryFile[bytes]) -> None:
        size = file.tell()
        file.seek(0)
        super().__init__(
            iter(partial(file.read, _CHUNK_BYTES), b""), headers={"content-length": str(size)}, media_type=_NDJSON
        )
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _of_result(item: Article | YeoulError, result: Accepted | YeoulError) -> dict[str, Any]:
    if isinstance(result, Accepted):
        return {"id": result.article_id, "seq": result.seq, "status": result.status}
    return ({"id": item.id} if isinstance(item, Article) else {}) | content_of(result)
