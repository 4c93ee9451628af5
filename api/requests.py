"""Bodies of requests, read within a limit: JSON objects and lines of NDJSON.

A body that is too large is refused whether or not its length was announced, and never held in memory as a whole. What is
left of it is read and dropped up to a bound, because many clients read no answer before they have sent everything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import Request

from api.errors import Malformed
from pipeline.documents import MAX_BODY_BYTES
from pipeline.errors import TooLarge, shown

# An article at its limit, sent with each Hangul syllable as \uXXXX (twice its UTF-8), and its other fields.
MAX_REQUEST_BYTES = 2 * MAX_BODY_BYTES + 1_000_000
_MAX_DROPPED_BYTES = 4 * MAX_REQUEST_BYTES  # beyond, the connection is closed under the client
_BYTES = "bytes"


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object that `request` carries. Raises Malformed where it carries none, TooLarge."""
    return parsed_object(await _read(request), "the body")


def parsed_object(data: bytes, what: str) -> dict[str, Any]:
    """`data` as a JSON object. Raises Malformed."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"{what} is not JSON: {error}", "send one JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise Malformed(f"{what} should be a JSON object, is {shown(value)}", "send one JSON object in UTF-8")
    return value


async def lines(request: Request) -> AsyncIterator[bytes | TooLarge]:
    """The lines of the body that are not blank, as they arrive; TooLarge in the place of a line over the limit."""
    held = bytearray()
    length = 0  # of the line under way, also of what of it is not held any more
    async for chunk in request.stream():
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            if (line := _line(held, length, end)) is not None:
                yield line
            held.clear()
            length = 0
        length += len(rest)
        if length <= MAX_REQUEST_BYTES:
            held += rest
        else:
            held.clear()
    if (line := _line(held, length, b"")) is not None:
        yield line


def _line(held: bytearray, length: int, end: bytes) -> bytes | TooLarge | None:
    if length + len(end) > MAX_REQUEST_BYTES:
        return TooLarge("the line", length + len(end), MAX_REQUEST_BYTES, _BYTES)
    return bytes(held + end).strip() or None


async def _read(request: Request) -> bytes:
    announced = _announced(request)
    if announced > MAX_REQUEST_BYTES + _MAX_DROPPED_BYTES:
        raise TooLarge("the request", announced, MAX_REQUEST_BYTES, _BYTES)
    held = bytearray()
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > MAX_REQUEST_BYTES + _MAX_DROPPED_BYTES:
            break
        if seen <= MAX_REQUEST_BYTES:
            held += chunk
        else:
            held.clear()
    if seen > MAX_REQUEST_BYTES:
        raise TooLarge("the request", max(seen, announced), MAX_REQUEST_BYTES, _BYTES)
    return bytes(held)


def _announced(request: Request) -> int:
    """The Content-Length; 0 where there is none (or none that is a number: the server in front refuses those)."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else 0
