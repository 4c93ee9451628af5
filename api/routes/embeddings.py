"""`POST /v1/embeddings`: the running encoder, in the shape of OpenAI's API."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from api.errors import documented, invalid_field
from api.requests import json_object
from api.responses import Json
from api.schemas import MAX_TEXT_CHARS, EmbeddingsAnswer, EmbeddingsRequest, body_of
from api.security import KEY_OPTIONAL, reader
from api.service import Running
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.errors import InvalidQuery, TooLarge

router = APIRouter(tags=["embeddings"])


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsAnswer,
    dependencies=[Depends(reader)],
    openapi_extra=body_of(EmbeddingsRequest) | KEY_OPTIONAL,
    responses=documented(400, 401, 413, 422, 500, 503),
)
async def embeddings(service: Running, request: Request) -> Json:
    """Unit vectors of texts; a text without content has the zero vector."""
    try:
        wanted = EmbeddingsRequest.model_validate(await json_object(request), strict=True)
    except ValidationError as error:
        raise invalid_field(error.errors()) from error
    return Json(await run_in_threadpool(_embedded, service.assembly.parts.encoder, wanted))


def _embedded(encoder: Encoder, wanted: EmbeddingsRequest) -> dict[str, Any]:
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    size = sum(map(len, texts))
    if size > MAX_TEXT_CHARS:
        raise TooLarge("the texts' length", size, MAX_TEXT_CHARS, "characters")
    if wanted.dimensions not in (None, encoder.dim):
        raise InvalidQuery("dimensions", wanted.dimensions, f"{encoder.dim}, or left out")
    encode = encoder.encode_queries if wanted.input_type == "query" else encoder.encode_passages
    vectors, tokens = encode(texts), sum(encoder.count_tokens(texts))
    as_base64 = wanted.encoding_format == "base64"
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _base64(vector) if as_base64 else vector}
            for i, vector in enumerate(vectors)
        ],
        "model": encoder.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(vector: FloatArray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
