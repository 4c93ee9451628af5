"""The audit: a line of JSON for every call that may change something, whether it was taken or refused.

It says who (the key's name, the peer), what (method, route, article, request id) and how it ended (status, seq, for a
bulk call how many lines); never a key and never a body. `api.security` begins a record, routes add to it, the middleware
writes it when the call is over. A line that cannot be written is told on stderr and fails no call. Lines go up to the
logger `yeoul.audit` too, for who gathers logs there. Knows nothing of what the calls mean.
"""

from __future__ import annotations

import fcntl
import logging
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson
from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import InvalidSetting

LOGGER = "yeoul.audit"
_MAX_FILE_BYTES = 10_000_000  # some 40,000 lines
_OLD_FILES = 5  # kept beside the one being written, as .1 (the youngest) to .5
_FILE_MODE = 0o600  # who wrote what is for the service's own user
_MAX_TEXT_CHARS = 200  # of what callers send along: the longest id, and a request id
_REQUEST_ID = "x-request-id"
_STATE = "audited"  # the record's name in the state of a request


@dataclass(slots=True, kw_only=True)
class WriteRecord:
    """What a call says of itself. Not frozen: it fills up while the call goes on, and must be right whenever that ends.

    `first_seq` .. `last_seq` are the new changes of a bulk call; what is None is left out of the line, but for `key`.
    """

    key: str | None = None
    seq: int | None = None
    lines_taken: int | None = None
    lines_refused: int | None = None
    first_seq: int | None = None
    last_seq: int | None = None
    job: str | None = None


def begin(request: Request) -> WriteRecord:
    """A record for `request`: from now on its call is audited."""
    record = WriteRecord()
    setattr(request.state, _STATE, record)
    return record


def record_of(request: Request) -> WriteRecord:
    """The record that was begun for `request`."""
    record: WriteRecord = getattr(request.state, _STATE)
    return record


class AuditLog:
    """The lines of one app: on their way to its file, if it has one, and to the logger `yeoul.audit`."""

    def __init__(self) -> None:
        # Not one of the logging tree: two apps in a process would write into each other's files.
        self._logger = logging.Logger(LOGGER, logging.INFO)
        self._logger.parent = logging.getLogger(LOGGER)

    def write(self, line: dict[str, Any]) -> None:
        self._logger.info("%s", orjson.dumps(line).decode())

    @contextmanager
    def kept_in(self, path: Path) -> Iterator[None]:
        """Writes into the file at `path` too, within the block. Raises InvalidSetting where it cannot be opened."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # with two servers nobody else needs the data folder
            handler = handler_to(path)
        except OSError as error:
            raise InvalidSetting(
                "api.audit_log", str(path), f"a file that can be written ({error.strerror})"
            ) from error
        self._logger.addHandler(handler)
        try:
            yield
        finally:
            self._logger.removeHandler(handler)
            handler.close()


def handler_to(path: Path) -> logging.Handler:
    """Writes lines as they are into a file that only its owner may read, and turns it over at 10 MB, five old ones kept.

    Several processes of a machine may write into one file. Raises OSError where it cannot be opened.
    """
    return _PrivateFile(path, maxBytes=_MAX_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8")


class _PrivateFile(RotatingFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self._alone():
                self._follow()
                super().emit(record)
        except OSError:
            self.handleError(record)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this process writes or turns the file over no other one does. The folder is locked: the file is another one
        once it was turned over."""
        folder = os.open(Path(self.baseFilename).parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _follow(self) -> None:
        """Opens the file anew where another process turned it over."""
        if self.stream is None:  # the disk refused a new one
            return
        try:
            turned = not os.path.samestat(Path(self.baseFilename).stat(), os.fstat(self.stream.fileno()))
        except FileNotFoundError:
            turned = True
        if turned:
            before, self.stream = self.stream, self._open()
            before.close()

    def _open(self) -> TextIOWrapper:
        # A file that is there keeps its mode: somebody may have opened it to a group that gathers logs.
        def private(name: str, flags: int) -> int:
            return os.open(name, flags, _FILE_MODE)

        return open(self.baseFilename, "a", encoding=self.encoding, opener=private)


class Auditing:
    """ASGI middleware: writes the record of every call for which one was begun, however the call ended."""

    def __init__(self, app: ASGIApp, log: AuditLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status: int | None = None  # stays so where no answer is begun

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if isinstance(record := state.get(_STATE), WriteRecord):
                self._log.write(_line(scope, record, status))


def _line(scope: Scope, record: WriteRecord, status: int | None) -> dict[str, Any]:
    told = asdict(record)
    optional = {
        "article_id": _text(scope.get("path_params", {}).get("article_id")),
        **{name: value for name, value in told.items() if name != "key"},
        "request_id": _text(scope["state"].get("request_id") or Headers(scope=scope).get(_REQUEST_ID)),
    }
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "key": record.key,
        "peer": scope["client"][0] if scope.get("client") else None,
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", None),
        "status": status,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _text(value: object) -> str | None:
    """What a caller sent, as the registry has it (NFC), printable in UTF-8 and of bounded length."""
    if value is None:
        return None
    return unicodedata.normalize("NFC", str(value)).encode("utf-8", "replace").decode()[:_MAX_TEXT_CHARS]
