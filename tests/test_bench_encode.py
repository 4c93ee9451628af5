"""`yeoul bench encode` in short: a tiny encoder is measured for real, and what the figures are made of."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from indexers.benchmarks import shapes
from indexers.benchmarks.encoding import LENGTHS, PUBLISHED, Comparison, Served
from indexers.commands.bench import bench_app
from pipeline.encoding.sentence import SentenceEncoder
from pipeline.errors import InvalidInput
from tests.sentence_models import MINILM

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="the closed loop needs wrk: apt-get install wrk")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    folder = shapes.made("tiny", tmp_path_factory.mktemp("shapes"))
    return SentenceEncoder.open(str(folder), device="cpu", query_prompt="", passage_prompt="")


@needs_wrk
def test_every_length_is_measured_through_http_and_in_process(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YEOUL_ENCODER__CACHE_DIR", environment["YEOUL_ENCODER__CACHE_DIR"])
    out = ["--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "picture.png")]
    plan = ["--shapes", "tiny", "--device", "cuda", "--length", "8", "--length", "64", "--connections", "8"]
    done = CliRunner().invoke(bench_app, ["encode", *plan, "--seconds", "1", "--rounds", "0", *out])
    assert done.exit_code == 0, done.output
    assert torch.cuda.is_available() or "no GPU here" in done.stderr
    (figures,) = orjson.loads((tmp_path / "figures.json").read_bytes())
    assert figures["matrix_rate"] > 1e8
    assert [cell["length"] for cell in figures["cells"]] == [8, 64]
    for cell in figures["cells"]:
        assert set(cell["outcomes"]) == {"200"}, cell
        assert min(cell["http"], cell["process"]) > 0
        assert 0 < cell["p50"] <= cell["p95"] <= cell["p99"]
        assert 0 < cell["batch_p50"] <= cell["batch_p95"] <= cell["batch_p99"]
        assert 0 < cell["of_device"] < 1
        assert cell["batch"] > 1
        assert f"| {cell['length']} tokens | {cell['http']:,.1f} a second |" in done.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("which", ["tiny", MINILM])
def test_texts_differ_and_have_as_many_tokens_as_asked_for(which: str, tiny: SentenceEncoder) -> None:
    encoder = tiny if which == "tiny" else SentenceEncoder.open(which, device="cpu", query_prompt="", passage_prompt="")
    for length in (8, 100):
        texts = shapes.texts(encoder, length, 50)
        assert len(set(texts)) == len(texts) > 40
        assert [one.cost for one in encoder.prepared(texts, "query") if one is not None] == [length] * len(texts)
        ids = encoder.model.preprocess(texts)["input_ids"]
        assert tuple(ids.shape) == (len(texts), length)
    for none in (2, 513):
        with pytest.raises(InvalidInput, match=f"no text has {none} tokens"):
            shapes.texts(encoder, none, 1)


@pytest.mark.parametrize("name", ["tiny", "koelectra-small"])
def test_the_work_for_a_token_is_what_torch_counts(name: str, tmp_path: Path) -> None:
    encoder = SentenceEncoder.open(str(shapes.made(name, tmp_path)), device="cpu")
    (text,) = shapes.texts(encoder, 32, 1)
    transformer: Any = next(iter(encoder.model))
    transformer.auto_model.set_attn_implementation("eager")  # torch does not count inside of its fused one
    with FlopCounterMode(display=False) as counter:
        encoder.rows([one for one in encoder.prepared([text], "document") if one is not None])
    pooler = 2 * encoder.dim**2  # of the whole text, where there is one; nobody reads it
    assert counter.get_total_flops() == pytest.approx(32 * shapes.flops_a_token(encoder.model, 32), abs=pooler)


def test_an_unknown_shape_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="koelectra-small, bert-base"):
        shapes.made("bert-huge", tmp_path)


def test_the_published_figures_have_their_lengths_and_a_ratio_is_of_medians() -> None:
    for rates in PUBLISHED.values():
        assert len(rates) == len(LENGTHS)
        assert list(rates) == sorted(rates, reverse=True)
    first, second = ([Served(rate, 1.0) for rate in rates] for rates in ((10, 90, 20), (10, 1, 10)))
    assert Comparison(length=16, name="a", other="b", first=tuple(first), second=tuple(second)).ratio == 2
    assert math.isfinite(Comparison(length=16, name="a", other="b", first=tuple(first), second=(Served(0, 0),)).ratio)
