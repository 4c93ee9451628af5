"""`/v1/admin`: what the scheduler does and is asked to do, what could not be indexed, and where everything stands.

A job is asked for by a row in the state database, which the scheduler obeys, in whatever process it runs. What a call
does is here as functions as well, for the page of operations. Reading is not audited, asking is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from api.audit import record_of
from api.errors import documented, invalid_field
from api.freshness import Freshness
from api.limits import limits_of
from api.requests import json_object
from api.responses import Json
from api.schemas import (
    CollectionAnswer,
    FailedAnswer,
    JobAnswer,
    JobsAnswer,
    ReaderAnswer,
    RetryAnswer,
    RetryRequest,
    StateAnswer,
    body_of,
)
from api.security import access_of, administrator, key_of
from api.service import Running, Service
from pipeline.documents import checked_id
from pipeline.storage import jobs, manifests, readers
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.jobs import Job
from pipeline.storage.manifests import KnownCollection
from pipeline.storage.readers import Reader
from pipeline.storage.rows import Accepted, Failed

router = APIRouter(prefix="/v1/admin", tags=["admin"])

_MAX_FAILED = 1_000  # of one answer
_MAX_NAME_CHARS = 120  # of a job, as the state database holds it
_KEY_NEEDED: dict[str, Any] = {"security": [{"HTTPBearer": []}]}  # the OpenAPI entry of a call for administrators

Action = Literal["run", "pause", "resume"]
JobName = Annotated[
    str, Path(min_length=1, max_length=_MAX_NAME_CHARS, pattern=r"^[^/\p{C}]+$", description="such as source:news")
]
_ACTIONS: Mapping[Action, Callable[[StateDatabase, str], None]] = {
    "run": jobs.request,
    "pause": partial(jobs.pause, paused=True),
    "resume": partial(jobs.pause, paused=False),
}


async def overseer(request: Request) -> None:
    """Lets through who may administer and only looks: unlike with `administrator` the call has no line in the audit."""
    access_of(request).caller(await key_of(request), request).require("admin")


_LOOKING: dict[str, Any] = {"dependencies": [Depends(overseer)], "openapi_extra": _KEY_NEEDED}
_ACTING: dict[str, Any] = {
    "status_code": 202,
    "response_model": JobAnswer,
    "dependencies": [Depends(administrator)],
    "responses": documented(401, 403, 404, 422, 500, 503),
}


@dataclass(frozen=True, slots=True)
class Overview:
    """Where everything stands: `articles` by status; `seq`: all changes up to it are settled; nothing that is secret."""

    seq: int
    queued: int
    articles: dict[str, int]
    freshness: Freshness
    readers: list[Reader]
    collections: list[KnownCollection]


@router.get(
    "/jobs",
    response_model=JobsAnswer,
    responses=documented(401, 403, 500, 503),
    **_LOOKING,
)
async def listed(service: Running) -> Json:
    """Every job: when it ran last, how that ended, when it runs next."""
    found = await run_in_threadpool(jobs.listed, service.store.database)
    return Json({"jobs": [_described(job) for job in found]})


@router.post("/jobs/{name}/run", **_ACTING)
async def run(service: Running, request: Request, name: JobName) -> Json:
    """Asks for a run as soon as may be, also of a job that is paused."""
    return await _acted(service, request, name, "run")


@router.post("/jobs/{name}/pause", **_ACTING)
async def pause(service: Running, request: Request, name: JobName) -> Json:
    """Keeps a job from running by itself; a run that is under way goes on."""
    return await _acted(service, request, name, "pause")


@router.post("/jobs/{name}/resume", **_ACTING)
async def resume(service: Running, request: Request, name: JobName) -> Json:
    """Lets a paused job run by itself again."""
    return await _acted(service, request, name, "resume")


@router.get(
    "/failed",
    response_model=FailedAnswer,
    responses=documented(401, 403, 422, 500, 503),
    **_LOOKING,
)
async def failed(service: Running, limit: Annotated[int, Query(ge=1, le=_MAX_FAILED)] = 100) -> Json:
    """The articles whose newest change could not be indexed, with the reason."""
    articles, total = await run_in_threadpool(failures, service.store, limit)
    told = [
        {"id": one.article_id, "seq": one.seq, "error": one.error, "accepted_at": one.accepted_at} for one in articles
    ]
    return Json({"articles": told, "total": total})


@router.post(
    "/failed/retry",
    status_code=202,
    response_model=RetryAnswer,
    dependencies=[Depends(administrator)],
    openapi_extra=body_of(RetryRequest),
    responses=documented(400, 401, 403, 413, 422, 500, 503),
)
async def retry(service: Running, request: Request) -> Json:
    """Puts what failed into the inbox again, as it was accepted."""
    try:
        wanted = RetryRequest.model_validate(await json_object(request), strict=True)
    except ValidationError as error:
        raise invalid_field(error.errors()) from error
    ids = [checked_id(one) for one in wanted.ids] if wanted.ids is not None else None
    queued = await try_again(service, request, ids)
    return Json({"queued": [{"id": one.article_id, "seq": one.seq} for one in queued]}, status_code=202)


@router.get(
    "/state",
    response_model=StateAnswer,
    responses=documented(401, 403, 500, 503),
    **_LOOKING,
)
async def state(service: Running) -> Json:
    """The queue, freshness, and which processes answer from which collections."""
    seen = await run_in_threadpool(overview, service)
    return Json(
        {
            "seq": seen.seq,
            "queued": seen.queued,
            "articles": seen.articles,
            "freshness": asdict(seen.freshness),
            "readers": [_picked(one, ReaderAnswer.model_fields) for one in seen.readers],
            "collections": [_picked(one, CollectionAnswer.model_fields) for one in seen.collections],
        }
    )


def act(database: StateDatabase, name: str, action: Action) -> None:
    """Asks the scheduler for `action` on the job `name`. Raises JobNotFound."""
    _ACTIONS[action](database, name)


def failures(store: ArticleStore, limit: int) -> tuple[list[Failed], int]:
    """The articles that failed, oldest first, at most `limit`, and how many there are."""
    return store.failed(limit), store.counts().get("failed", 0)


async def try_again(service: Service, request: Request, ids: Sequence[str] | None) -> list[Accepted]:
    """Queues those of the articles `ids` (None: all) that failed, and notes it in the audit's record of `request`."""
    queued = await run_in_threadpool(service.store.retry, ids)
    limits_of(request).pushed(len(queued))
    if queued:
        record = record_of(request)
        record.first_seq, record.last_seq = queued[0].seq, queued[-1].seq
        service.wake()
    return queued


def overview(service: Service) -> Overview:
    """Reads the state database alone: it says where things stand while the index is not open, too. May block."""
    store = service.store
    return Overview(
        seq=store.settled_up_to(),
        queued=store.queue_length(),
        articles=store.counts(),
        freshness=service.freshness.state(),
        readers=readers.alive(store.database),
        collections=manifests.known(store.database, "building", "ready", "active", "kept"),
    )


async def _acted(service: Service, request: Request, name: str, action: Action) -> Json:
    record_of(request).job = name

    def asked() -> Job:
        act(service.store.database, name, action)
        return jobs.find(service.store.database, name)

    return Json(_described(await run_in_threadpool(asked)), status_code=202)


def _described(job: Job) -> dict[str, Any]:
    return _picked(job, JobAnswer.model_fields)


def _picked(thing: object, names: Mapping[str, object]) -> dict[str, Any]:
    """What an answer names of `thing`, and nothing else of it."""
    return {name: getattr(thing, name) for name in names}
