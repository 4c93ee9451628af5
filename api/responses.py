"""Answers as JSON, and routes whose functions give them. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import request_response


class Json(Response):
    """A JSON response by orjson; arrays of numpy are written as lists."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class Plain(APIRoute):
    """A route whose function takes the request and gives the response: nothing is done around it but the answers to errors."""

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **described: Any) -> None:
        super().__init__(path, endpoint, **described)
        self.app = request_response(endpoint)  # Starlette's: what FastAPI cleans up afterwards is not there
