"""`/operations`: the page on which a person sees whether the service is well, and asks the scheduler for something.

Rendered here, works without scripts: every button is a form that posts and comes back. With configured keys the browser
asks for one and sends it with each call (HTTP Basic: any name, the key as the password), so that nothing is kept here and
any process will do; a session signed with what the settings hold could be made up by whoever reads them. Without keys the
page answers this machine alone. Because browsers send passwords along by themselves, a form has to come from this page:
it carries a token made from the key or, without keys, its origin is the page's own.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import HTTPBasic
from starlette.concurrency import run_in_threadpool
from starlette.templating import Jinja2Templates

from api import audit
from api.errors import KeyRequired, NotAllowed, status_of
from api.limits import BoundedRequest
from api.routes.admin import Action, JobName, Overview, act, failures, overview, try_again
from api.security import Caller, access_of
from api.service import Running, Service
from api.telemetry import Spread
from pipeline.documents import checked_id
from pipeline.errors import JobNotFound, YeoulError
from pipeline.storage import jobs
from pipeline.storage.jobs import Job
from pipeline.storage.rows import Failed

router = APIRouter(prefix="/operations", include_in_schema=False, default_response_class=HTMLResponse)

_templates = Jinja2Templates(directory=Path(__file__).parent.parent / "console" / "templates")
_basic = HTTPBasic(auto_error=False)
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="Yeoul", charset="UTF-8"'}
_PAGE = "/operations"
_TOKEN_PURPOSE = b"yeoul: a form of the operations page"
_MAX_FORM_BYTES = 10_000  # a token and an id, percent-encoded
_SHOWN_FAILED = 20
_UNITS = (("일", 86_400), ("시간", 3_600), ("분", 60), ("초", 1))  # in seconds, largest first
_OUTCOMES = {"never": "아직 안 함", "running": "하는 중", "done": "잘됨", "failed": "실패"}
_STATES = {"building": "짓는 중", "ready": "다 지음", "active": "쓰는 중", "kept": "남겨 둠"}
_CHANGES = {"publish": "올린 글이 검색되기까지", "delete": "지운 글이 사라지기까지"}
_ORIGINS = {"push": "보낸 글", "canary": "카나리아"}
_STATUSES = {"queued": "대기", "indexed": "검색됨", "failed": "실패", "deleted": "지움"}
_NAMES = {"states": _STATES, "statuses": _STATUSES, "changes": _CHANGES, "origins": _ORIGINS}
_KEY_NEEDED = "이 쪽은 관리하는 사람만 봅니다. 이름은 아무것이나, 암호는 범위 admin이 있는 키를 적어 주세요."
_NOT_LOCAL = (
    "키를 설정하지 않은 동안에는 여울이 도는 컴퓨터에서만 볼 수 있습니다. "
    "다른 곳에서 보려면 설정 api.keys에 범위 admin이 있는 키를 넣어 주세요."
)
_NOT_OURS = "이 쪽의 단추로 보낸 것이 아니라서 아무것도 하지 않았습니다. 아래에서 다시 눌러 주세요."
_NO_JOB = "그런 작업이 없습니다. 그사이 없어졌는지 아래에서 확인해 주세요."
_FAILURE = "하지 못했습니다"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the page. `token` has to come back with each form; "" without keys, where the origin speaks for it."""

    caller: Caller
    token: str


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job as the page shows it; `seconds` of the last run, where it ended."""

    job: Job
    outcome: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What the page shows, all of about one moment."""

    overview: Overview
    jobs: list[ShownJob]
    failed: list[Failed]
    failed_total: int
    troubles: list[str]
    freshness: list[Spread]


class _ForeignForm(NotAllowed):
    """A form that was not sent from this page."""

    def __init__(self) -> None:
        super().__init__(
            "the form does not come from the page of operations", "open /operations and send it from there"
        )


@router.get("")
async def page(service: Running, request: Request) -> Response:
    """The page, or what is needed to see it."""
    return await _page(service, request)


@router.post("/jobs/{name}/{action}")
async def act_on_job(service: Running, request: Request, name: JobName, action: Action) -> Response:
    """Runs, pauses or resumes a job, and comes back to the page."""

    async def asked(_fields: dict[str, str]) -> None:
        audit.record_of(request).job = name
        await run_in_threadpool(act, service.store.database, name, action)

    return await _posted(service, request, asked)


@router.post("/failed/retry")
async def retry(service: Running, request: Request) -> Response:
    """Queues the article `id` of the form again, or all that failed, and comes back to the page."""

    async def asked(fields: dict[str, str]) -> None:
        await try_again(service, request, [checked_id(fields["id"])] if "id" in fields else None)

    return await _posted(service, request, asked)


async def _posted(service: Service, request: Request, do: Callable[[dict[str, str]], Awaitable[None]]) -> Response:
    """Does what a form asks, if it may, and comes back; the page says why not."""
    record = audit.begin(request)
    try:
        visitor = await _visitor(service, request)
        record.key = visitor.caller.name
        fields = await _fields(request)
        _check_form(request, visitor, fields.get("token", ""))
        await do(fields)
    except YeoulError as error:
        return await _page(service, request, problem=error)
    return RedirectResponse(_PAGE, status_code=HTTPStatus.SEE_OTHER)


async def _page(service: Service, request: Request, problem: YeoulError | None = None) -> Response:
    """The page with what there is to see, if the visitor may; with `problem`, if there is one."""
    now = datetime.now(UTC)
    context: dict[str, Any] = {"names": _NAMES, "since": partial(_since, now=now)}
    try:
        visitor = await _visitor(service, request)
        context |= {"token": visitor.token, "sight": await run_in_threadpool(_seen, service)}
    except YeoulError as error:
        problem = error
    status = status_of(problem) if problem is not None else HTTPStatus.OK
    if problem is not None:
        context["problem"] = _told(problem)
    headers = {"Cache-Control": "no-store"} | (_CHALLENGE if status == HTTPStatus.UNAUTHORIZED else {})
    return _templates.TemplateResponse(request, "operations.html", context, status_code=status, headers=headers)


# ---- who may


async def _visitor(service: Service, request: Request) -> Visitor:
    """Raises KeyRequired, also for a key that may not administer; NotAllowed without keys, for who is not on this machine."""
    credentials = await _basic(request)
    key = credentials.password if credentials is not None else None
    caller = access_of(request).caller(key, request)
    if not service.settings.api.keys:
        return Visitor(caller, "")
    try:
        caller.require("admin")
    except NotAllowed as error:  # a browser asks for another password only where one is required
        raise KeyRequired(error.message) from error
    return Visitor(caller, hmac.new((key or "").encode(), _TOKEN_PURPOSE, "sha256").hexdigest())


def _check_form(request: Request, visitor: Visitor, token: str) -> None:
    """Raises _ForeignForm."""
    if visitor.token:
        own = hmac.compare_digest(visitor.token.encode(), token.encode("utf-8", "replace"))
    else:
        own = _origin(request) == request.headers.get("host")
    if not own:
        raise _ForeignForm


def _origin(request: Request) -> str | None:
    """Host and port of the page that sends the form; browsers say it with every POST."""
    try:
        return urlsplit(request.headers.get("origin", "")).netloc or None
    except ValueError:
        return None


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a form without files. Raises TooLarge."""
    body = await BoundedRequest(request, _MAX_FORM_BYTES).body()
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


# ---- what is shown


def _seen(service: Service) -> Sight:
    """May block."""
    failed, total = failures(service.store, _SHOWN_FAILED)
    return Sight(
        overview=overview(service),
        jobs=[_shown(job) for job in jobs.listed(service.store.database)],
        failed=failed,
        failed_total=total,
        troubles=[str(reason) for reason in service.reasons()],
        freshness=service.metrics.freshness(),
    )


def _shown(job: Job) -> ShownJob:
    begun, ended = job.started_at, job.finished_at
    return ShownJob(
        job=job,
        outcome=_OUTCOMES[job.outcome],
        seconds=(ended - begun).total_seconds() if begun is not None and ended is not None and ended >= begun else None,
    )


def _told(problem: YeoulError) -> str:
    """What the page says of `problem`: our own words where there are some for it."""
    match problem:
        case KeyRequired():
            return _KEY_NEEDED
        case _ForeignForm():
            return _NOT_OURS
        case NotAllowed():
            return _NOT_LOCAL
        case JobNotFound():
            return _NO_JOB
    return f"{_FAILURE}: {problem}"


def _since(moment: datetime, now: datetime) -> str:
    """How long ago or ahead `moment` is, in its largest unit."""
    seconds = (now - moment).total_seconds()
    for name, size in _UNITS:
        if abs(seconds) >= size:
            return f"{abs(seconds) // size:.0f}{name} {'전' if seconds > 0 else '뒤'}"
    return "방금"
