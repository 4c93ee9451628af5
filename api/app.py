"""The web application: settings and an assembly → routes, error answers, figures and the running parts behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from api import errors
from api.audit import Auditing, AuditLog
from api.errors import Unexpected
from api.limits import Limits, QueueGauge, WriteRate
from api.routes import admin, articles, console, embeddings, health, operations, search
from api.searches import Refusing
from api.security import Access, SecurityHeaders
from api.service import Service
from api.telemetry import Telemetry
from pipeline import settings as configuration
from pipeline.assembly import Assembly
from pipeline.errors import YeoulError
from pipeline.settings import Settings
from pipeline.storage.acceptance import PUSH

_STATIC = Path(__file__).parent / "console" / "static"
_AUDIT_FILE = "audit.log"
_STAND_SECONDS = 5.0  # a scrape comes every 15 or so


def _nothing() -> None:
    pass


async def _stand(service: Service) -> None:
    """Puts down now and then where this process stands, for who shares its figures."""
    while service.metrics.shared:
        with suppress(YeoulError, SQLAlchemyError):
            service.metrics.put_down(await run_in_threadpool(service.gauges))
        await asyncio.sleep(_STAND_SECONDS)


def create_app(
    settings: Settings | None = None,
    *,
    assembly: Assembly | None = None,
    wake: Callable[[], None] = _nothing,
    on_stop: Callable[[], None] = _nothing,
) -> FastAPI:
    """The application. `app.state.service.notify()` tells it that something was committed.

    Without `settings` those in force; without an `assembly` the app opens its own while it runs. `wake` is called when a
    change came into the inbox, `on_stop` when the app has stopped.
    """
    settings = settings or configuration.load()
    service = Service(settings, assembly, wake)
    audit = AuditLog()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        tasks = [asyncio.create_task(service.metrics.watch_loop()), asyncio.create_task(_stand(service))]
        try:
            with audit.kept_in(settings.api.audit_log or settings.data_dir / _AUDIT_FILE):
                yield
        finally:
            for task in tasks:
                task.cancel()
            await run_in_threadpool(service.stop)
            await run_in_threadpool(on_stop)

    app = FastAPI(
        title="Yeoul",
        description="Korean hybrid search: articles by meaning and by words, in one ranking.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # looked for at every request; ours is below
    )
    app.state.service = service
    app.state.access = Access(settings.api)
    app.state.limits = Limits(
        WriteRate(settings.api.writes_per_minute),
        QueueGauge(lambda: service.store.queue_length(PUSH), settings.indexers.queue_limit),
        QueueGauge(lambda: service.store.queue_length(), settings.indexers.queue_limit),  # noqa: PLW0108 - not open yet
    )
    errors.install(app)
    for routes in (search, articles, embeddings, admin, health, console, operations):
        app.router.routes.extend(routes.router.routes)  # an included router is looked through twice
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_middleware(Unexpected)  # the last one added is the outermost
    app.add_middleware(Auditing, log=audit)
    app.add_middleware(Refusing, refusal=service.refusal)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Telemetry, metrics=service.metrics)
    return app
