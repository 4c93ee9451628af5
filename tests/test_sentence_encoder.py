"""SentenceEncoder with real models: a tiny BERT made on the spot, and all-MiniLM-L6-v2 of a Python package."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kiwipiepy import Kiwi
from sentence_transformers import SentenceTransformer

from pipeline.encoding.encoder import MorphemeEncoder
from pipeline.encoding.kiwi_static import unit_rows
from pipeline.encoding.opening import open_encoder
from pipeline.encoding.sentence import Prompts, SentenceEncoder
from pipeline.errors import EncoderFailed, InvalidSetting
from tests.sentence_models import LIMIT, MINILM, TEXTS, save_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> SentenceEncoder:
    return SentenceEncoder.open(str(tiny), device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    return SentenceEncoder.open(MINILM, device="cpu", query_prompt="", passage_prompt="")


def test_rows_are_float32_of_length_1(encoder: SentenceEncoder) -> None:
    for vectors in (encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)):
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_batches_sorted_by_length_give_back_the_given_order(encoder: SentenceEncoder) -> None:
    together = encoder.encode_passages(TEXTS)
    alone = np.concatenate([encoder.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("most", "budget"), [(2, 1000), (100, 40), (100, 1)])
def test_a_batch_has_texts_of_like_length_and_keeps_its_bounds(tiny: Path, most: int, budget: int) -> None:
    encoder = SentenceEncoder.open(str(tiny), device="cpu", batch_size=most, batch_tokens=budget)
    seen: list[tuple[int, int]] = []
    encoder._model.register_forward_pre_hook(lambda _model, given: seen.append(tuple(given[0]["input_ids"].shape)))
    together = encoder.encode_passages(TEXTS)
    lengths = [length for _, length in seen]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(texts for texts, _ in seen) == len(TEXTS)
    assert len(seen) < len(TEXTS) or budget == 1
    for texts, length in seen:
        assert texts == 1 or (texts <= most and texts * length <= budget)
    np.testing.assert_allclose(together, SentenceEncoder.open(str(tiny)).encode_passages(TEXTS), atol=1e-5)


def test_vectors_are_the_librarys_with_the_prompt_in_front(tiny: Path, encoder: SentenceEncoder) -> None:
    model = SentenceTransformer(str(tiny), device="cpu")
    for prompt, ours in (("query: ", encoder.encode_queries(TEXTS)), ("passage: ", encoder.encode_passages(TEXTS))):
        theirs = model.encode([prompt + text for text in TEXTS], normalize_embeddings=True)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(encoder.encode_queries(TEXTS) - encoder.encode_passages(TEXTS)).max() > 0.01


def test_blank_texts_get_the_zero_vector(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode_queries(["", "대출", " \n"])
    assert not vectors[[0, 2]].any()
    assert np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-6)
    assert encoder.encode_queries([]).shape == (0, 16)
    assert encoder.count_tokens([]) == []


def test_a_text_over_the_limit_is_cut(encoder: SentenceEncoder) -> None:
    assert encoder.max_tokens == LIMIT
    long = "가 나 다 라 " * 20
    kept = "가 나 다 라 " * 10  # still over the limit
    np.testing.assert_allclose(encoder.encode_passages([long]), encoder.encode_passages([kept]), atol=1e-6)
    assert encoder.count_tokens([long, kept, "가 나", ""]) == [80, 40, 2, 0]


def test_prompts_stored_in_the_model_win(tmp_path: Path) -> None:
    stored = save_tiny_bert(tmp_path, {"query": "질문: ", "passage": ""})
    encoder = SentenceEncoder.open(str(stored), device="cpu", query_prompt="query: ", passage_prompt="passage: ")
    assert encoder.prompts == Prompts("질문: ", "")


def test_id_changes_with_weights_and_prompts_and_not_with_the_place(tiny: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / tiny.name
    shutil.copytree(tiny, moved)
    others = save_tiny_bert(tmp_path, seed=1)
    ids = [
        SentenceEncoder.open(str(tiny), device="cpu").id,
        SentenceEncoder.open(str(moved), device="cpu").id,
        SentenceEncoder.open(str(others), device="cpu").id,
        SentenceEncoder.open(str(tiny), device="cpu", query_prompt="q: ").id,
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[1:])) == 3
    assert ids[0].startswith("tiny-bert:")


def test_english_model_knows_what_is_meant(minilm: SentenceEncoder) -> None:
    passages = ["How to borrow money from a bank", "The weather will be sunny tomorrow", "Recipe for tomato soup"]
    scores = minilm.encode_queries(["getting a loan"]) @ minilm.encode_passages(passages).T
    assert scores.argmax() == 0
    assert scores[0, 0] > 0.4
    assert minilm.dim == 384
    assert minilm.max_tokens == 256
    assert minilm.count_tokens(["getting a loan"]) == [3]


def test_half_precision_would_keep_the_ranking(minilm: SentenceEncoder) -> None:
    """What CUDA runs, computed here on the processor."""
    half = SentenceTransformer(MINILM, device="cpu").half()
    texts = ["How to borrow money", "The weather tomorrow", "A loan from the bank", "Tomato soup"]
    ours = SentenceEncoder(half, "half", Prompts("", "")).encode_passages(texts)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours, minilm.encode_passages(texts), atol=5e-3)


def test_vectors_that_are_no_numbers_are_an_error(tiny: Path) -> None:
    model = SentenceTransformer(str(tiny), device="cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(EncoderFailed, match="NaN"):
        SentenceEncoder(model, "broken", Prompts("", "")).encode_queries(["대출"])


def test_a_failure_inside_the_model_names_it(tiny: Path) -> None:
    model = SentenceTransformer(str(tiny), device="cpu")
    model.max_seq_length = 99  # more than it has positions
    encoder = SentenceEncoder(model, "broken", Prompts("", ""))
    with pytest.raises(EncoderFailed, match=r"broken:.*failed on 1 texts"):
        encoder.encode_queries(["대 출 " * 60])


@pytest.mark.parametrize("model", ["/no/such/folder", "./no-such-folder"])
def test_a_missing_folder_is_said(model: str) -> None:
    with pytest.raises(EncoderFailed, match="cannot be loaded") as caught:
        SentenceEncoder.open(model, device="cpu")
    assert "the folder is missing" in caught.value.hint


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EncoderFailed, match="cannot be loaded") as caught:
        SentenceEncoder.open(str(tmp_path), device="cpu")
    assert "SentenceTransformer.save" in caught.value.hint


def test_damaged_weights_are_said(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EncoderFailed, match="cannot be loaded"):
        SentenceEncoder.open(str(broken), device="cpu")


def test_a_name_that_the_hub_cannot_give_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test waits for a network
    with pytest.raises(EncoderFailed, match="cannot be loaded") as caught:
        SentenceEncoder.open("nobody/no-such-model", device="cpu")
    assert "kiwi-static" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_names_the_setting(tiny: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"encoder\.device.*cuda"):
        SentenceEncoder.open(str(tiny), device="cuda")
    with pytest.raises(InvalidSetting, match=r"encoder\.batch_size.*0"):
        SentenceEncoder.open(str(tiny), batch_size=0)


def test_cuda_in_half_precision_agrees_with_the_processor(tiny: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU and a CUDA build of torch")
    on_gpu = SentenceEncoder.open(str(tiny), device="cuda")
    on_cpu = SentenceEncoder.open(str(tiny), device="cpu")
    assert on_gpu.id == on_cpu.id
    np.testing.assert_allclose(on_gpu.encode_passages(TEXTS), on_cpu.encode_passages(TEXTS), atol=2e-2)


def test_open_encoder_takes_any_sentence_transformer(tiny: Path) -> None:
    encoder = open_encoder(str(tiny), Kiwi(), device="cpu", query_prompt="", passage_prompt="")
    assert not isinstance(encoder, MorphemeEncoder)
    vectors = encoder.encode_queries(TEXTS)
    np.testing.assert_allclose(vectors, unit_rows(vectors), atol=1e-6)
    assert np.array_equal(vectors, encoder.encode_passages(TEXTS))  # one prompt, one space
