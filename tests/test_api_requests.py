"""Reading bodies: however the network cuts them, the same lines come out, and no more than the limit is held."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from api import requests
from pipeline.errors import TooLarge


def _request(chunks: Sequence[bytes]) -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    return Request({"type": "http", "headers": []}, receive)


def _lines(chunks: Sequence[bytes]) -> list[bytes | TooLarge]:
    async def collected() -> list[bytes | TooLarge]:
        return [line async for line in requests.lines(_request(chunks))]

    return asyncio.run(collected())


@given(st.lists(st.text("ab \r\n", max_size=12).map(str.encode), max_size=8))
def test_lines_do_not_depend_on_how_the_body_is_cut(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert _lines(chunks) == [line.strip() for line in whole.split(b"\n") if line.strip()]


@given(st.lists(st.sampled_from([b"a" * 7, b"\n", b"b" * 3, b"c\nd"]), max_size=12))
def test_a_line_over_the_limit_fails_alone(chunks: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "MAX_REQUEST_BYTES", 8)
        found = _lines(chunks)
    expected = [line if len(line) <= 8 else "too large" for line in b"".join(chunks).split(b"\n") if line]
    assert ["too large" if isinstance(line, TooLarge) else line for line in found] == expected
