"""pipeline/index/manifest.py"""

from __future__ import annotations

from dataclasses import fields, replace

import orjson
import pytest

from pipeline.errors import ManifestMismatch
from pipeline.index.manifest import Manifest

MADE = Manifest(
    encoder="kiwi-static:0.24.0:abc:def",
    dim=256,
    tokenizer="kiwi 0.24.1, model 0.24.0, rules 2, user words none",
    max_tokens=256,
    overlap_sentences=1,
    alpha=0.2,
)
_OTHER = {"encoder": "e5:1", "dim": 384, "tokenizer": "x", "max_tokens": 99, "overlap_sentences": 0, "schema": 99}


def test_a_manifest_survives_the_way_through_json() -> None:
    assert Manifest.from_json(MADE.to_json()) == MADE


def test_another_weight_needs_no_other_index() -> None:
    MADE.check(replace(MADE, alpha=0.7))
    assert "alpha" not in MADE.identity()


@pytest.mark.parametrize("name", [field.name for field in fields(Manifest) if field.name != "alpha"])
def test_any_other_difference_is_refused_and_both_values_are_named(name: str) -> None:
    running = replace(MADE, **{name: _OTHER[name]})  # type: ignore[arg-type]
    with pytest.raises(ManifestMismatch) as caught:
        MADE.check(running)
    assert caught.value.differences == {name: (getattr(MADE, name), _OTHER[name])}
    assert repr(getattr(MADE, name)) in str(caught.value)
    assert repr(_OTHER[name]) in str(caught.value)


def test_every_difference_is_named_at_once() -> None:
    with pytest.raises(ManifestMismatch) as caught:
        MADE.check(replace(MADE, **_OTHER))  # type: ignore[arg-type]
    assert caught.value.differences.keys() == _OTHER.keys()


@pytest.mark.parametrize("change", [{"pooling": "mean"}, {"schema": None}])
def test_the_manifest_of_a_version_with_other_fields_is_a_mismatch(change: dict[str, str | None]) -> None:
    data = {k: v for k, v in (orjson.loads(MADE.to_json()) | change).items() if v is not None}
    with pytest.raises(ManifestMismatch, match="fields of the manifest"):
        Manifest.from_json(orjson.dumps(data).decode())
