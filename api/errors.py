"""Errors as HTTP: one table from classes to status codes, one shape for every answer that is not a success.

The only place where the errors of `pipeline` meet status codes. What was not raised on purpose becomes a 500 that shows
nothing of the inside; its traceback goes to the log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.responses import Json
from api.schemas import ErrorAnswer
from pipeline.errors import (
    ArticleNotFound,
    EncoderFailed,
    FolderInUse,
    InvalidInput,
    InvalidQuery,
    InvalidSetting,
    JobNotFound,
    LogPruned,
    ManifestMismatch,
    OlderRevision,
    Overloaded,
    QueueFull,
    SourceChanged,
    SourceNotFound,
    TooLarge,
    Unavailable,
    YeoulError,
    shown,
)

log = logging.getLogger(__name__)

_GONE = 499  # nginx's number for a client that closed the connection
_RETRY_SECONDS = 1  # loading and waiting are over in seconds
# A fixed time, no estimate: the worker takes hundreds of articles in it, and to ask again too early costs nearly nothing.
_QUEUE_RETRY_SECONDS = 5


class Malformed(YeoulError):
    """The request cannot be read at all."""

    code = "malformed"


class KeyRequired(YeoulError):
    """No key, or one that is not known."""

    code = "key_required"

    def __init__(self, why: str) -> None:
        super().__init__(why, "send a key of api.keys as 'Authorization: Bearer KEY'")


class NotAllowed(YeoulError):
    """The caller is known, or there are no keys, and this is not for them."""

    code = "not_allowed"


class TooManyRequests(YeoulError):
    """The caller has written as much as it may in the time; `retry_after` is whole seconds, at least 1."""

    code = "too_many_requests"

    def __init__(self, limit: int, seconds: int, wait_seconds: float) -> None:
        self.retry_after = max(1, math.ceil(wait_seconds))
        super().__init__(
            f"at most {limit:,} articles are taken from a caller in {seconds} s (api.writes_per_minute)",
            f"send again in {self.retry_after} s what was not taken",
        )


class IndexingFailed(YeoulError):
    """An accepted change that the worker could not index; what was visible before stays visible."""

    code = "indexing_failed"

    def __init__(self, article_id: str, why: str) -> None:
        super().__init__(
            f"article {shown(article_id)} was accepted but cannot be indexed: {why}", "correct the article, send again"
        )


_PLACES = ("query", "body", "path", "header")  # where pydantic says a field stands: no part of its name

# An error has the status of its nearest class here; a new class has to be placed (a test sees to it).
STATUS: Mapping[type[YeoulError], int] = {
    Malformed: 400,
    KeyRequired: 401,
    NotAllowed: 403,
    ArticleNotFound: 404,
    SourceNotFound: 404,
    JobNotFound: 404,
    OlderRevision: 409,
    SourceChanged: 409,
    TooLarge: 413,
    InvalidInput: 422,
    IndexingFailed: 422,
    TooManyRequests: 429,
    QueueFull: 429,
    Overloaded: 429,
    InvalidSetting: 500,
    EncoderFailed: 500,
    YeoulError: 500,
    Unavailable: 503,
    FolderInUse: 503,
    LogPruned: 503,
    ManifestMismatch: 503,
}
_OF_HTTP = {
    404: ("not_found", "there is nothing at {path}", "GET /openapi.json lists what there is"),
    405: ("method_not_allowed", "{path} does not answer {method}", "see the header Allow"),
}


def status_of(error: YeoulError) -> int:
    """The status code of `error`: that of its nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def content_of(error: YeoulError) -> dict[str, dict[str, str]]:
    """`error` in the one shape."""
    return shape(error.code, error.message, error.hint)


def shape(code: str, message: str, hint: str) -> dict[str, dict[str, str]]:
    return {"error": {"code": code, "message": message, "hint": hint}}


def answer(error: YeoulError) -> Json:
    """`error` as a response."""
    status = status_of(error)
    headers = {}
    if (seconds := _retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Json(content_of(error), status_code=status, headers=headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the error answers `statuses`."""
    return {status: {"description": HTTPStatus(status).phrase, "model": ErrorAnswer} for status in statuses}


def install(app: FastAPI) -> None:
    """Makes every error of `app` answer in the one shape."""
    app.add_exception_handler(YeoulError, _of_yeoul)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, _of_database)


def invalid_field(errors: Sequence[Any]) -> YeoulError:
    """The first of pydantic's `errors` as ours: the field, the value seen, the rule."""
    first = errors[0]
    where = next((str(part) for part in first["loc"] if part not in _PLACES), "body")
    return InvalidQuery(where, first.get("input") if first["type"] != "missing" else None, _rule(first))


def _rule(error: Any) -> str:
    limits = error.get("ctx", {})
    rules = {
        "missing": "given",
        "string_too_short": "some text",
        "string_too_long": f"at most {limits.get('max_length')} characters",
        "too_short": f"at least {limits.get('min_length')} of them",
        "too_long": f"at most {limits.get('max_length')} of them",
    }
    message: str = error["msg"]
    return rules.get(error["type"], message.removeprefix("Input should be ").removeprefix("Value error, "))


def _retry_after(error: YeoulError) -> int | None:
    """Whole seconds after which it makes sense to ask again; None where the same request will fail again."""
    if isinstance(error, TooManyRequests | Overloaded):
        return error.retry_after
    if isinstance(error, QueueFull):
        return _QUEUE_RETRY_SECONDS
    return _RETRY_SECONDS if status_of(error) == HTTPStatus.SERVICE_UNAVAILABLE else None


class Unexpected:
    """ASGI middleware: an exception that nobody expected is logged with its traceback and answered as a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            log.info("a client went away before its request was whole, or answered")
            if not started:
                await Response(status_code=_GONE)(scope, receive, send)  # for the figures: it is no failure of ours
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("%s %s failed unexpectedly", scope["method"], shown(scope["path"]))
            if started:
                raise  # the status line is gone: only closing the connection tells the client
            content = shape(YeoulError.code, "an unexpected error happened", "the server's log says what; try again")
            await Json(content, status_code=500)(scope, receive, send)


async def _of_yeoul(_request: Request, error: Exception) -> Response:
    assert isinstance(error, YeoulError)
    if status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s", error, exc_info=error)
    return answer(error)


async def _of_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return answer(invalid_field(error.errors()))


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code, message, hint = _OF_HTTP.get(error.status_code, (phrase.lower().replace(" ", "_"), error.detail, ""))
    told = message.format(path=shown(request.url.path), method=request.method)
    return Json(shape(code, told, hint), status_code=error.status_code, headers=error.headers)


async def _of_database(_request: Request, error: Exception) -> Response:
    log.error("the state database does not answer", exc_info=error)
    return answer(Unavailable("the state database does not answer", "try again; yeoul doctor says what is amiss"))
