"""`POST /v1/embeddings`: the running encoder, in the shape of OpenAI's API."""

from __future__ import annotations

import base64

from fastapi import APIRouter, Request
from pydantic import ValidationError

from api.embeddings import embedded
from api.errors import documented, invalid_field
from api.leaving import gone_of
from api.requests import json_object
from api.responses import Json, Plain
from api.schemas import MAX_TEXT_CHARS, EmbeddingsAnswer, EmbeddingsRequest, body_of
from api.security import KEY_OPTIONAL, check_reader
from api.service import Service
from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.sentence import Task
from pipeline.errors import InvalidQuery, TooLarge

router = APIRouter(tags=["embeddings"], route_class=Plain)


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsAnswer,
    openapi_extra=body_of(EmbeddingsRequest) | KEY_OPTIONAL,
    responses=documented(400, 401, 413, 422, 429, 500, 503),
)
async def embeddings(request: Request) -> Json:
    """Unit vectors of texts; a text without content has the zero vector."""
    await check_reader(request)
    try:
        wanted = EmbeddingsRequest.model_validate(await json_object(request), strict=True)
    except ValidationError as error:
        raise invalid_field(error.errors()) from error
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    size = sum(map(len, texts))
    if size > MAX_TEXT_CHARS:
        raise TooLarge("the texts' length", size, MAX_TEXT_CHARS, "characters")
    service: Service = request.app.state.service
    encoder = service.assembly.parts.encoder
    if wanted.dimensions not in (None, encoder.dim):
        raise InvalidQuery("dimensions", wanted.dimensions, f"{encoder.dim}, or left out")
    task: Task = "query" if wanted.input_type == "query" else "document"
    vectors, tokens = await embedded(encoder, texts, task, gone_of(request))
    written = _base64 if wanted.encoding_format == "base64" else _numbers
    return Json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": written(vector)} for i, vector in enumerate(vectors)
            ],
            "model": encoder.id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _numbers(vector: FloatArray) -> FloatArray:
    return vector


def _base64(vector: FloatArray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
