"""Whether the process lives, whether it is ready, and its figures."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.concurrency import run_in_threadpool

from api.errors import documented
from api.responses import Json
from api.schemas import HealthAnswer, ReadyAnswer
from api.service import Running
from pipeline.errors import NotReady

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthAnswer)
async def healthz() -> Json:
    """The process is alive; says nothing about its stores."""
    return Json({"status": "alive"})


@router.get("/readyz", response_model=ReadyAnswer, responses=documented(503))
async def readyz(service: Running) -> Json:
    """The index is loaded and the stores answer; otherwise 503 with the reasons. `freshness.late` says where changes take
    longer to be seen than they should: searches are answered all the same."""
    reasons = await run_in_threadpool(service.reasons)
    if reasons:
        raise NotReady("not ready: " + "; ".join(r.message for r in reasons), reasons[0].hint)
    connected = service.connected
    return Json(
        {
            "status": "ready",
            "engine": service.settings.engine,
            "passages": connected.engine()[0].count,
            "seq": connected.follower.seq,
            "freshness": asdict(service.freshness.state()),
            "manifest": asdict(connected.manifest),
        }
    )


@router.get(
    "/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}, response_class=Response
)
async def metrics(service: Running) -> Response:
    """Figures for Prometheus; of all workers, where several answer on this port."""
    text = await run_in_threadpool(lambda: service.metrics.exposition(service.gauges()))
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)
