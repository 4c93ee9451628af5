"""The birth certificate of an index: everything that its vectors and terms depend on.

Two manifests with one `identity` may share rows. The fusion weight measured for the encoder is kept beside it: it changes
no row, so another weight needs no other index.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from pipeline.errors import ManifestMismatch

SCHEMA_VERSION = 1  # of the collection's rows and of cleaning and chunking: raise it where old rows would be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an index was built with. `alpha` is the weight of the dense leg measured for this encoder, in 0..1."""

    encoder: str
    dim: int
    tokenizer: str
    max_tokens: int
    overlap_sentences: int
    alpha: float
    schema: int = SCHEMA_VERSION

    def identity(self) -> dict[str, Any]:
        """The fields that rows depend on."""
        identity = asdict(self)
        del identity["alpha"]
        return identity

    def check(self, running: Manifest) -> None:
        """Raises ManifestMismatch naming each difference, unless rows made by `running` fit this index."""
        made, now = self.identity(), running.identity()
        different = {name: (made[name], now[name]) for name in made if made[name] != now[name]}
        if different:
            raise ManifestMismatch(different)

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """What `to_json` gave. Raises ManifestMismatch for the manifest of a version with other fields."""
        data: dict[str, Any] = orjson.loads(text)
        names = {field.name for field in fields(cls)}
        if data.keys() != names:
            raise ManifestMismatch({"fields of the manifest": (sorted(data), sorted(names))})
        return cls(**data)
