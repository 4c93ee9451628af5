"""Settings: where they come from, what is refused, what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from pipeline.errors import InvalidSetting, UnreadableSource
from pipeline.retrieval.fusion import METHODS
from pipeline.settings import FILE, FusionSettings, Settings, described, in_force, load

SECRET = "a-very-secret-key"
DIGEST = "9f" * 32


@pytest.fixture(autouse=True)
def bare_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    names = [name.upper().replace(".", "__") for name, _, _ in described()]
    for name in [*names, *{name.split("__")[0] for name in names}]:
        monkeypatch.delenv(f"YEOUL_{name}", raising=False)
    return tmp_path


def test_the_defaults_are_the_contracts() -> None:
    settings = load()
    assert settings.data_dir == Path(".yeoul")
    assert (settings.encoder.model, settings.encoder.device, settings.engine) == ("kiwi-static", "auto", "resident")
    assert (settings.fusion.method, settings.fusion.alpha) == ("tm2c2", None)
    assert settings.fusion.candidates >= 200
    assert (settings.api.keys, settings.api.search_requires_key) == ((), False)
    assert (settings.milvus_uri, settings.milvus_is_lite) == (".yeoul/milvus.db", True)
    assert settings.state_url == "sqlite:///.yeoul/state.db"


def test_each_source_goes_over_the_one_before(bare_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare_folder / FILE).write_text(
        'data_dir = "toml"\n[milvus]\nuri = "toml.db"\ntoken = "toml"\ncollection = "toml"\n[fusion]\nalpha = 0.1\n'
    )
    assert (load().milvus.uri, load().milvus.token, load().data_dir) == ("toml.db", "toml", Path("toml"))
    monkeypatch.setenv("YEOUL_MILVUS__URI", "http://env:19530")
    monkeypatch.setenv("YEOUL_MILVUS__TOKEN", "env")
    monkeypatch.setenv("YEOUL_FUSION__ALPHA", "0.7")
    settings = load(milvus={"token": "flag"})
    assert (settings.milvus.uri, settings.milvus.token, settings.milvus.collection) == (
        "http://env:19530",
        "flag",
        "toml",
    )
    assert settings.fusion.alpha == 0.7
    assert (settings.milvus_uri, settings.milvus_is_lite) == ("http://env:19530", False)


def test_keys_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YEOUL_API__KEYS", json.dumps([{"key": SECRET, "scopes": ["write", "admin"]}, {"key": SECRET}]))
    assert [key.scopes for key in load().api.keys] == [("write", "admin"), ("write",)]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("datadir = 'x'", "datadir"),
        ("[milvus]\nurl = 'x'", "milvus.url"),
        ("[vectors]\ndim = 3", "vectors"),
        ("[api]\nkeys = [{key = 'long enough', scope = ['write']}]", "api.keys.0.scope"),
    ],
)
def test_an_unknown_name_in_the_file_is_refused_by_name(bare_folder: Path, content: str, name: str) -> None:
    (bare_folder / FILE).write_text(content)
    with pytest.raises(InvalidSetting, match="no such setting") as caught:
        load()
    assert f"setting '{name}'" in str(caught.value)


def test_an_unknown_part_of_a_section_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YEOUL_MILVUS__URL", "x")
    with pytest.raises(InvalidSetting, match=r"setting 'milvus\.url' should be left out"):
        load()


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("YEOUL_ENGINE", "faiss", "engine"),
        ("YEOUL_FUSION__ALPHA", "1.5", "fusion.alpha"),
        ("YEOUL_FUSION__CANDIDATES", "10", "fusion.candidates"),
        ("YEOUL_FUSION__METHOD", "max", "fusion.method"),
        ("YEOUL_API__PORT", "http", "api.port"),
        ("YEOUL_MILVUS__COLLECTION", "a b", "milvus.collection"),
        ("YEOUL_MILVUS__URI", "unix:milvus", "milvus.uri"),
        ("YEOUL_MILVUS__URI", "milvus", "milvus.uri"),
        ("YEOUL_CHUNKING__MAX_TOKENS", "2", "chunking.max_tokens"),
        ("YEOUL_API__WRITES_PER_MINUTE", "-1", "api.writes_per_minute"),
        ("YEOUL_API__MAX_BULK_BYTES", "0", "api.max_bulk_bytes"),
        ("YEOUL_INDEXERS__QUEUE_LIMIT", "-1", "indexers.queue_limit"),
    ],
)
def test_a_bad_value_is_refused_with_name_value_and_cure(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSetting) as caught:
        load()
    assert f"setting {name!r} should be " in caught.value.message
    assert repr(value) in caught.value.message
    assert variable in caught.value.hint


@pytest.mark.parametrize(
    "value", ["[{bad", SECRET, '{"key": 1}', f'[{{"key": "{SECRET}", "scopes": ["root"]}}]', '[{"key": "s3"}]']
)
def test_bad_keys_are_refused_by_name_without_showing_them(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("YEOUL_API__KEYS", value)
    with pytest.raises(InvalidSetting, match=r"setting 'api\.keys") as caught:
        load()
    assert SECRET not in str(caught.value)
    assert "s3" not in str(caught.value)
    assert caught.value.__cause__ is None or SECRET not in str(caught.value.__cause__)


def test_a_key_may_be_given_by_its_digest_and_have_a_name(bare_folder: Path) -> None:
    (bare_folder / FILE).write_text(f'[api]\nkeys = [{{sha256 = "{DIGEST}", name = "cms"}}, {{key = "{SECRET}"}}]')
    hashed, plain = load().api.keys
    assert (hashed.key, hashed.sha256, hashed.name, hashed.scopes) == (None, DIGEST, "cms", ("write",))
    assert (plain.key, plain.sha256, plain.name) == (SECRET, None, None)
    assert SECRET not in repr(plain)


@pytest.mark.parametrize(
    ("entry", "name", "rule"),
    [
        ({"key": SECRET, "sha256": DIGEST}, "api.keys.0", "not with both or none"),
        ({"scopes": ["write"], "name": SECRET}, "api.keys.0", "not with both or none"),
        ({"sha256": SECRET}, "api.keys.0.sha256", "[0-9a-fA-F]{64}"),
        ({"sha256": f"{DIGEST}0"}, "api.keys.0.sha256", "[0-9a-fA-F]{64}"),
        ({"sha256": DIGEST, "name": ""}, "api.keys.0.name", "at least 1 character"),
    ],
)
def test_a_key_has_either_its_secret_or_its_digest(
    monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], name: str, rule: str
) -> None:
    monkeypatch.setenv("YEOUL_API__KEYS", json.dumps([entry]))
    with pytest.raises(InvalidSetting) as caught:
        load()
    assert f"setting {name!r} should" in caught.value.message
    assert rule in caught.value.message
    assert SECRET not in str(caught.value)
    assert DIGEST not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [b"data_dir = ", b"\xb0\xa1 = 1", b"[a\n"])
def test_a_file_that_is_no_toml_is_refused_with_its_place(bare_folder: Path, content: bytes) -> None:
    (bare_folder / FILE).write_bytes(content)
    with pytest.raises(UnreadableSource, match=r"yeoul\.toml") as caught:
        load()
    assert str(bare_folder) in caught.value.hint


def _leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names |= _leaves(inner, f"{prefix}{name}.")
        else:
            names.add(f"{prefix}{name}")
    return names


def test_every_setting_is_described_and_shown() -> None:
    assert {name for name, _, _ in described()} == _leaves(Settings) == {name for name, _ in in_force(load())}
    assert all(text for _, _, text in described())
    assert dict(in_force(load())) == {name: default for name, default, _ in described()}


def test_every_fusion_method_can_be_chosen_and_no_other() -> None:
    """Settings name the methods a second time, because they are read before numpy is."""
    assert get_args(FusionSettings.model_fields["method"].annotation) == METHODS


def test_secrets_are_not_shown() -> None:
    settings = load(
        api={"keys": [{"key": SECRET}]}, milvus={"token": SECRET}, database_url=f"postgresql://yeoul:{SECRET}@db/yeoul"
    )
    shown = dict(in_force(settings))
    assert SECRET not in str(shown)
    assert {shown["api.keys"], shown["milvus.token"], shown["database_url"]} == {"(hidden)"}
