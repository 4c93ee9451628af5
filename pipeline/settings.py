"""Every setting: name, unit, default, help. Read by `yeoul.py` and `api.create_app` alone, passed down as arguments.

Sources, the later over the earlier: the defaults here, `yeoul.toml` in the working directory, `YEOUL_*` environment
variables (`YEOUL_MILVUS__URI` is `milvus.uri`), command-line flags.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pipeline.errors import InvalidSetting, UnreadableSource

FILE = "yeoul.toml"
_SECRET = frozenset({"api.keys", "milvus.token", "database_url", "sources"})  # never printed
_HIDDEN = "(hidden)"
MOST_WORKERS = 64
_SERVER = re.compile(r"(https?|tcp)://\S+")
# What is JSON in the environment.
_JSON_EXAMPLES = {
    "sources": '[{"name": "notices", "kind": "folder", "options": {"path": "/srv/notices"}}]',
    "api.keys": '[{"key": "...", "scopes": ["write"]}]',
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MilvusSettings(_Section):
    uri: str = Field(
        "", description="a path ending in .db (Milvus Lite) or http://host:port; empty: DATA_DIR/milvus.db"
    )
    token: str = Field("", description="user:password or an API key of the Milvus server")
    collection: str = Field(
        "yeoul", pattern="^[A-Za-z_][A-Za-z0-9_]{0,99}$", description="first part of the collections' names"
    )
    index: Literal["flat", "hnsw"] = Field("flat", description="index of the dense vectors; flat is exact")

    @field_validator("uri")
    @classmethod
    def _is_lite_or_a_server(cls, uri: str) -> str:
        if uri and not uri.endswith(".db") and not _SERVER.fullmatch(uri):
            raise ValueError("a path that ends in .db or an address such as http://127.0.0.1:19530")
        return uri


class EncoderSettings(_Section):
    model: str = Field("kiwi-static", description="kiwi-static, or a SentenceTransformer's name or folder")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where a SentenceTransformer and the vectors live"
    )
    query_prompt: str = Field("query: ", description="put before a query where the model names no prompt of its own")
    passage_prompt: str = Field("passage: ", description="put before a passage, likewise")
    batch_size: int = Field(
        256, ge=1, le=4096, description="most texts that a SentenceTransformer encodes together; 1: each by itself"
    )
    batch_tokens: int | None = Field(
        None, ge=1, le=10_000_000, description="most tokens of them, padding included; empty: 512, on a GPU 16384"
    )
    queue: int = Field(
        4096, ge=1, le=1_000_000, description="texts that may wait for their embedding before more of them get 429"
    )
    cache_dir: Path | None = Field(
        None, description="where kiwi-static keeps its table; empty: the user's cache folder"
    )


class ChunkingSettings(_Section):
    max_tokens: int = Field(
        192, ge=16, le=8192, description="tokens of the encoder a passage, title and heading included"
    )
    overlap_sentences: int = Field(1, ge=0, le=5, description="sentences that a passage repeats of the one before")


class LexicalSettings(_Section):
    variant: Literal["lucene", "okapi", "l", "plus"] = Field("lucene", description="the BM25 formula")
    k1: float = Field(0.9, ge=0, le=10, description="BM25: how fast a repeated term saturates")
    b: float = Field(0.4, ge=0, le=1, description="BM25: how much a long passage is discounted")
    bigram_weight: float = Field(0.4, ge=0, le=10, description="weight of the character-bigram field; morphemes have 1")
    title_weight: float = Field(0.2, ge=0, le=10, description="weight of the title field; morphemes have 1")


class FusionSettings(_Section):
    method: Literal["tm2c2", "minmax", "zscore", "rrf", "dpr"] = Field(
        "tm2c2", description="how the two legs are merged"
    )
    alpha: float | None = Field(
        None, ge=0, le=1, description="weight of the dense leg; empty: the weight measured for the encoder (manifest)"
    )
    adaptive: bool = Field(
        True, description="more weight to the dense leg where the query's words hardly occur (tm2c2)"
    )
    rrf_k: int = Field(60, ge=1, le=1000, description="constant of reciprocal rank fusion")
    candidates: int = Field(200, ge=200, le=10_000, description="passages that each leg proposes")


KeyScope = Literal["read", "write", "admin"]


class ApiKey(_Section):
    """A key: the secret itself, or its SHA-256, so that nobody who reads the settings can call."""

    key: str | None = Field(None, min_length=8, repr=False, description="the secret of `Authorization: Bearer`")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="SHA-256 of the secret, in hex digits")
    scopes: tuple[KeyScope, ...] = Field(("write",), description="what the key may do")
    name: str | None = Field(
        None, min_length=1, max_length=100, description="what the audit calls it; empty: the digest's first 8 digits"
    )

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("given with either 'key' or 'sha256', not with both or none")
        return self


class ApiSettings(_Section):
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8200, ge=1, le=65535, description="port to listen on")
    workers: int = Field(
        1,
        ge=1,
        le=MOST_WORKERS,
        description="processes that answer on the port, with a Milvus server; each limits and queues by itself, and has an index "
        "of its own where the engine is resident",
    )
    keys: tuple[ApiKey, ...] = Field(
        (),
        description="keys that may call, each {key or sha256, scopes, name}; empty: writes are taken from loopback only",
    )
    search_batch: int = Field(
        16, ge=1, le=1024, description="most searches that are answered together; 1: each by itself"
    )
    search_queue: int = Field(
        256, ge=1, le=100_000, description="searches that may wait for their turn before more of them get 429"
    )
    search_patience_seconds: float = Field(
        0.15, gt=0, le=60, description="longest a search waits for its turn in a crowd before it gets 429, in seconds"
    )
    search_requires_key: bool = Field(False, description="ask a key for searching too")
    wait_seconds: float = Field(10.0, gt=0, le=120, description="longest wait of wait=true and min_seq, in seconds")
    freshness_seconds: float = Field(
        2.0, gt=0, description="publish to searchable and delete to gone should take no longer, in seconds"
    )
    writes_per_minute: int = Field(
        60_000,
        ge=0,
        le=1_000_000,
        description="writes of a key in a minute, each article of a bulk call one; 0: any number",
    )
    max_bulk_bytes: int = Field(1_000_000_000, ge=1, description="largest body of a bulk call, in bytes")
    audit_log: Path | None = Field(
        None, description="file with a line of JSON for each write call, of one process; empty: DATA_DIR/audit.log"
    )


class IndexerSettings(_Section):
    poll_seconds: float = Field(
        0.5, gt=0, le=60, description="how often the inbox and the change log are looked at, in seconds"
    )
    grace_seconds: float = Field(
        5.0, ge=0, le=3600, description="how long rows of a replaced revision stay, in seconds"
    )
    attempts: int = Field(5, ge=1, le=20, description="how often a change is tried before it is a dead letter")
    canary_seconds: float = Field(
        60.0, ge=0, le=3600, description="how often a canary article measures freshness, in seconds; 0: never"
    )
    reconcile_hours: float = Field(
        24.0, ge=0, le=720, description="how often the stores are compared and mended, in hours; 0: never"
    )
    retention_hours: float = Field(
        168.0, gt=0, le=8760, description="how long settled changes and the change log are kept, in hours"
    )
    queue_limit: int = Field(
        100_000,
        ge=0,
        description="changes that may wait in the inbox before bulk calls get 429 and sources wait; pushes count by themselves; 0: any number",
    )


class SourceSettings(_Section):
    """A source of `yeoul.toml`: the same as `yeoul sources add` takes."""

    name: str = Field(min_length=1, max_length=100, description="what it is called")
    kind: Literal["folder", "feed", "sql"] = Field(description="what is read")
    schedule: str = Field("10m", description="seconds (60s, 5m, 1h) or five fields of cron, in the machine's time zone")
    options: dict[str, Any] = Field({}, repr=False, description="what the kind asks for, such as path or url")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="YEOUL_", env_nested_delimiter="__", toml_file=FILE, extra="forbid", frozen=True
    )

    data_dir: Path = Field(Path(".yeoul"), description="folder of the state database, of Milvus Lite and of the lock")
    database_url: str = Field("", description="SQLAlchemy URL of the state database; empty: SQLite in DATA_DIR")
    user_words: Path | None = Field(None, description="user dictionary: TSV of word, tag, score")
    synonyms: Path | None = Field(
        None, description="your own synonyms, before the shipped ones: TSV of a word and its like"
    )
    engine: Literal["resident", "milvus"] = Field(
        "resident", description="resident: exact, in memory; milvus: for larger corpora"
    )
    milvus: MilvusSettings = MilvusSettings()
    encoder: EncoderSettings = EncoderSettings()
    chunking: ChunkingSettings = ChunkingSettings()
    lexical: LexicalSettings = LexicalSettings()
    fusion: FusionSettings = FusionSettings()
    api: ApiSettings = ApiSettings()
    indexers: IndexerSettings = IndexerSettings()
    sources: tuple[SourceSettings, ...] = Field(
        (),
        description="sources that are added or changed when the indexer starts, each {name, kind, schedule, options}; "
        "one taken out of here stays until yeoul sources remove",
    )

    @field_validator("sources")
    @classmethod
    def _names_are_unique(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise ValueError(f"without two sources of one name ({', '.join(names)})")
        return sources

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def milvus_uri(self) -> str:
        return self.milvus.uri or str(self.data_dir / "milvus.db")

    @property
    def milvus_is_lite(self) -> bool:
        return self.milvus_uri.endswith(".db")

    @property
    def state_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'state.db'}"


def load(**overrides: Any) -> Settings:
    """The settings in force. `overrides` are command-line flags, nested as the settings are.

    Raises InvalidSetting naming the setting, the value seen and the rule; UnreadableSource for a file that is no TOML.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        secret = any(name == hidden or name.startswith(f"{hidden}.") for hidden in _SECRET)
        # Without the cause where it would print the secret in a traceback.
        raise InvalidSetting(name, _HIDDEN if secret else first.get("input"), _rule(first)) from (
            None if secret else error
        )
    except SettingsError as error:
        name = "sources" if '"sources"' in str(error) else "api.keys"
        raise InvalidSetting(name, str(error), f"JSON, as in {_JSON_EXAMPLES[name]}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UnreadableSource(f"{FILE} is not readable TOML: {error}", f"correct {FILE} in {Path.cwd()}") from error


def described() -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, default, help): the table of README and of `yeoul doctor`."""
    return [row for name, field in Settings.model_fields.items() for row in _rows(name, field)]


def in_force(settings: Settings) -> list[tuple[str, str]]:
    """Every setting as (dotted name, value), secrets hidden."""
    rows = []
    for name, _, _ in described():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        hidden = name in _SECRET and value
        rows.append((name, _HIDDEN if hidden else _written(value)))
    return rows


def _rows(name: str, field: Any) -> list[tuple[str, str, str]]:
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return [row for part, inner in annotation.model_fields.items() for row in _rows(f"{name}.{part}", inner)]
    return [(name, _written(field.default), field.description or "")]


def _written(value: Any) -> str:
    return "" if value is None or value == () else str(value)


def _rule(details: ErrorDetails) -> str:
    if details["type"] == "extra_forbidden":
        return "left out: there is no such setting"
    return details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
