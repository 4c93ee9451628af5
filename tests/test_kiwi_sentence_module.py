"""kiwi-static inside the SentenceTransformer library: the same vectors, saved, opened, trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kiwipiepy import Kiwi
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from pipeline.encoding.encoder import MorphemeEncoder
from pipeline.encoding.kiwi_sentence_module import KiwiStaticModule
from pipeline.encoding.kiwi_static import KiwiStaticEncoder, unit_rows
from pipeline.encoding.kiwi_table import MorphemeTable, vocabulary_size
from pipeline.encoding.opening import open_encoder
from pipeline.encoding.sentence import Prompts, SentenceEncoder
from pipeline.encoding.trained_table import MODULE_TYPE, is_trained_kiwi_static
from pipeline.encoding.word_probabilities import default_probabilities
from pipeline.errors import EncoderFailed

DIM = 32  # of the table made here: what is tested does not depend on its meaning, and Kiwi's takes 8 s to derive
TEXTS = ["전세자금대출은 무주택 세대주가 신청한다", "ISA 계좌로 500만원 송금", "뷁뚫", "", "?!", "돈 부치기"]


@pytest.fixture(scope="module")
def kiwi() -> Kiwi:
    return Kiwi()


@pytest.fixture(scope="module")
def encoder(kiwi: Kiwi) -> KiwiStaticEncoder:
    probabilities = default_probabilities("0.24.0")
    random = np.random.default_rng(5).normal(size=(vocabulary_size(kiwi), DIM)).astype(np.float32)
    return KiwiStaticEncoder(kiwi, MorphemeTable(unit_rows(random), "0.24.0", "0" * 64), probabilities)


@pytest.fixture
def model(encoder: KiwiStaticEncoder) -> SentenceTransformer:
    return SentenceTransformer(modules=[KiwiStaticModule.from_encoder(encoder)], device="cpu")


@pytest.fixture
def folder(model: SentenceTransformer, tmp_path: Path) -> Path:
    model.save(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_vectors_are_those_of_the_encoder(encoder: KiwiStaticEncoder, model: SentenceTransformer) -> None:
    theirs = model.encode(TEXTS, batch_size=2)
    np.testing.assert_allclose(theirs, encoder.encode_passages(TEXTS), atol=1e-5)
    assert model.get_embedding_dimension() == DIM
    assert model.max_seq_length is None


def test_a_prompt_is_read_in_front_of_the_text(encoder: KiwiStaticEncoder, model: SentenceTransformer) -> None:
    theirs = model.encode(["송금"], prompt="은행 ")
    np.testing.assert_allclose(theirs, encoder.encode_queries(["은행 송금"]), atol=1e-5)


def test_saved_folder_opens_in_the_library(encoder: KiwiStaticEncoder, folder: Path) -> None:
    again = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode_passages(TEXTS), atol=1e-5)


def test_saved_folder_opens_without_the_library(kiwi: Kiwi, encoder: KiwiStaticEncoder, folder: Path) -> None:
    assert is_trained_kiwi_static(folder)
    again = open_encoder(str(folder), kiwi)
    assert isinstance(again, MorphemeEncoder)
    np.testing.assert_allclose(again.encode_passages(TEXTS), encoder.encode_passages(TEXTS), atol=1e-5)
    assert again.id != encoder.id
    assert again.id == open_encoder(str(folder), kiwi).id


def test_a_sentence_encoder_takes_the_module(
    kiwi: Kiwi, encoder: KiwiStaticEncoder, model: SentenceTransformer
) -> None:
    ours = SentenceEncoder(model, "kiwi", Prompts("", ""))
    np.testing.assert_allclose(ours.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=1e-5)
    assert ours.count_tokens(TEXTS) == encoder.count_tokens(TEXTS)
    assert ours.max_tokens is None


def test_a_training_step_brings_pairs_together(
    kiwi: Kiwi, encoder: KiwiStaticEncoder, model: SentenceTransformer, tmp_path: Path
) -> None:
    asked = ["돈 보내는 방법", "집 살 때 돈 빌리기", "카드 잃어버림"]
    answered = ["송금 안내", "주택담보대출 조건", "분실 신고와 재발급"]
    loss = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        value = loss([model.preprocess(asked), model.preprocess(answered)], torch.arange(3))
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0]

    similar = model.encode(asked) @ model.encode(answered).T
    assert similar.argmax(axis=1).tolist() == [0, 1, 2]
    assert not np.allclose(model.encode(asked), encoder.encode_queries(asked), atol=0.01)

    model.save(str(tmp_path))
    reopened = open_encoder(str(tmp_path), kiwi)
    np.testing.assert_allclose(reopened.encode_queries(asked), model.encode(asked), atol=1e-5)


def test_training_leaves_other_words_alone(encoder: KiwiStaticEncoder, model: SentenceTransformer) -> None:
    before = model.encode(["축구 경기"])
    value = MultipleNegativesRankingLoss(model)(
        [model.preprocess(["돈 보내기", "날씨"]), model.preprocess(["송금", "비"])], torch.arange(2)
    )
    value.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert np.array_equal(model.encode(["축구 경기"]), before)
    assert not np.allclose(model.encode(["송금"]), encoder.encode_queries(["송금"]), atol=1e-5)


def test_a_model_of_another_kiwi_is_refused(kiwi: Kiwi, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kiwi_model": "9.9.9"}))
    with pytest.raises(EncoderFailed, match=r"9\.9\.9"):
        open_encoder(str(folder), kiwi)
    with pytest.raises(EncoderFailed, match=r"9\.9\.9"):
        SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other weights", "no config"])
def test_a_damaged_folder_is_said(kiwi: Kiwi, folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other weights":
        save_file({"another": load_file(weights)["embedding.weight"]}, weights)
    else:
        (folder / "config.json").unlink()
    with pytest.raises(EncoderFailed, match="saved"):
        open_encoder(str(folder), kiwi)


def test_only_a_lone_kiwi_static_module_is_opened_without_the_library(folder: Path, tmp_path: Path) -> None:
    assert f"{KiwiStaticModule.__module__}.{KiwiStaticModule.__qualname__}" == MODULE_TYPE
    two = tmp_path / "two"
    shutil.copytree(folder, two)
    modules = json.loads((two / "modules.json").read_text())
    dense = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"}
    (two / "modules.json").write_text(json.dumps([*modules, dense]))
    assert not is_trained_kiwi_static(two)
    assert not is_trained_kiwi_static(tmp_path / "missing")
