"""The shapes of requests and answers, as /openapi.json tells them.

Answers are written by the routes as they are; tests compare them with these. Articles are checked by
`pipeline.documents`, which names the field, the value and the rule; `ArticleBody` describes what passes there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.documents import MAX_BODY_BYTES, MAX_FIELD_CHARS, MAX_ID_CHARS, MAX_TAGS, MAX_TITLE_CHARS, MAX_URL_CHARS

Status = Literal["queued", "indexed", "failed", "deleted"]
Filtering = Annotated[str, Field(max_length=MAX_FIELD_CHARS)]
MAX_SEQ = 2**63 - 1  # the largest number a database column of 64 bits holds
MAX_RETRIED = 1_000  # ids of one call: they stand in one statement
MAX_TEXTS = 2_048  # of one call for embeddings, as OpenAI has it
MAX_TEXT_CHARS = 400_000  # of all texts together: about two seconds of Kiwi


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Shape):
    code: str = Field(description="stable name for programs")
    message: str = Field(description="what was wrong, with the value seen")
    hint: str = Field(description="the cure")


class ErrorAnswer(_Shape):
    error: ErrorDetail


class ArticleBody(_Shape):
    """An article. Title and body may not both be blank; times carry an offset."""

    id: str | None = Field(None, min_length=1, max_length=MAX_ID_CHARS, description="the id of the address, or nothing")
    title: str | None = Field(None, max_length=MAX_TITLE_CHARS)
    body: str = Field(description=f"at most {MAX_BODY_BYTES:,} bytes of UTF-8")
    format: Literal["text", "markdown", "html"] | None = None
    url: str | None = Field(None, max_length=MAX_URL_CHARS)
    category: Filtering | None = None
    series: Filtering | None = None
    tags: list[Filtering] | None = Field(None, max_length=MAX_TAGS)
    source: Filtering | None = None
    published_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = Field(None, description="missing: the time of acceptance")
    quality: float | None = Field(None, ge=0, le=1, description="higher is better")
    visible: bool | None = Field(None, description="missing: true")


class AcceptedAnswer(_Shape):
    id: str
    revision: int | None = Field(description="seq of the change that is visible now")
    seq: int = Field(description="number of this change: min_seq of a search waits for it")
    status: Status


class ArticleAnswer(_Shape):
    """The newest accepted version (without it after a delete), and where it stands."""

    id: str
    title: str | None
    body: str | None
    format: Literal["text", "markdown", "html"] | None
    url: str | None
    category: str | None
    series: str | None
    tags: list[str]
    source: str | None
    published_at: AwareDatetime | None
    updated_at: AwareDatetime
    quality: float | None
    visible: bool | None
    status: Status
    error: str | None = Field(description="why it could not be indexed")
    passages: int
    revision: int | None
    seq: int
    accepted_at: AwareDatetime
    indexed_at: AwareDatetime | None


class BulkLine(BaseModel):
    """One line of the answer of a bulk call: what was accepted, or why not."""

    line: int = Field(description="number of the line in the request, blank ones counted out, from 1")
    id: str | None = None
    seq: int | None = None
    status: Status | None = None
    error: ErrorDetail | None = None


class Explanation(_Shape):
    dense: float | None
    lexical: float | None
    dense_normalised: float | None
    lexical_normalised: float | None
    alpha: float
    lexical_evidence: float
    boosts: dict[str, float]
    matched_terms: list[str]


class ScoredPassageAnswer(_Shape):
    passage_id: str
    score: float


class Item(_Shape):
    article_id: str
    passage_id: str
    title: str
    url: str | None
    category: str | None
    series: str | None
    tags: list[str]
    source: str | None
    published_at: AwareDatetime | None
    snippet: str = Field(description="HTML, escaped but for <mark>")
    score: float
    passages: list[ScoredPassageAnswer] = Field(description="the article's other passages, best first")
    explain: Explanation | None = None


class Correction(_Shape):
    kind: Literal["keyboard", "spacing", "spelling", "synonym"]
    from_: str = Field(alias="from")
    to: str


class UnderstoodAnswer(_Shape):
    text: str
    corrections: list[Correction]


class ServiceHit(_Shape):
    id: str
    name: str
    path: str
    score: float
    threshold: float
    hint: str


class SearchAnswer(_Shape):
    query: str
    understood: UnderstoodAnswer
    took_ms: float
    seq: int = Field(description="all changes accepted up to it are in this answer")
    degraded: list[str] = Field(description="parts that did not work")
    services: list[ServiceHit]
    total: int = Field(description="articles that can be paged")
    next_cursor: str | None
    items: list[Item]
    timings_ms: dict[str, float] | None = None
    degraded_why: dict[str, str] | None = None


class EmbeddingsRequest(BaseModel):
    """As OpenAI's; what this server does not know is ignored. `model` is: the running encoder answers and is named."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["query", "passage"] = "passage"
    dimensions: int | None = Field(None, description="only the encoder's own number")


class EmbeddingAnswer(_Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or little-endian float32 in base64")


class Usage(_Shape):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(_Shape):
    object: Literal["list"]
    data: list[EmbeddingAnswer]
    model: str
    usage: Usage


class HealthAnswer(_Shape):
    status: Literal["alive"]


class FreshnessAnswer(_Shape):
    objective_seconds: float
    publish_seconds: float | None
    delete_seconds: float | None
    canary_at: datetime | None
    late: str = Field(description="what is beyond the objective; empty where nothing is")


class ReadyAnswer(_Shape):
    status: Literal["ready"]
    engine: str
    passages: int
    seq: int
    freshness: FreshnessAnswer
    manifest: dict[str, Any]


class JobAnswer(_Shape):
    """A job of the scheduler. What is asked of it is a row in the state database: the scheduler obeys within seconds."""

    name: str
    paused: bool
    outcome: Literal["never", "running", "done", "failed"]
    requested_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    next_at: AwareDatetime | None
    counts: dict[str, Any]
    error: str | None


class JobsAnswer(_Shape):
    jobs: list[JobAnswer]


class FailedArticle(_Shape):
    id: str
    seq: int
    error: str
    accepted_at: AwareDatetime


class FailedAnswer(_Shape):
    articles: list[FailedArticle] = Field(description="oldest first")
    total: int


class RetryRequest(_Shape):
    """Which articles that failed are tried again. One that did not fail is left as it is."""

    ids: list[Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]] | None = Field(
        None, max_length=MAX_RETRIED, description="missing: all"
    )


class QueuedChange(_Shape):
    id: str
    seq: int


class RetryAnswer(_Shape):
    queued: list[QueuedChange]


class ReaderAnswer(_Shape):
    """A process that answers searches."""

    name: str
    collection: str
    position: int = Field(description="line of the change log up to which it answers")
    seen_at: AwareDatetime


class CollectionAnswer(_Shape):
    name: str
    state: Literal["building", "ready", "active", "kept"]
    position: int | None = Field(description="line of the change log up to which it is complete; null: always")
    created_at: AwareDatetime


class StateAnswer(_Shape):
    seq: int = Field(description="all changes accepted up to it are in a final state")
    queued: int = Field(description="changes that wait to be indexed")
    articles: dict[str, int] = Field(description="how many articles, by status")
    freshness: FreshnessAnswer = Field(description="as this process measures it")
    readers: list[ReaderAnswer]
    collections: list[CollectionAnswer]


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a JSON body that a route reads by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}
