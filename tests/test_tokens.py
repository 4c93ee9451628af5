"""Texts as ids: what the library makes of them, or nothing at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pipeline.encoding.sentence import Prompts, SentenceEncoder
from pipeline.encoding.tokens import Tokenising
from tests.sentence_models import LIMIT, MINILM, TEXTS, save_tiny_bert

PROMPTS = {"query": "query: ", "document": ""}
MANY = [*TEXTS, "", "  x ", "café\tna\u0301ïve", "a " * 300, "한" * 99, "🎈 1,000원"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("which", ["tiny", MINILM])
def test_features_and_counts_are_the_librarys(which: str, tiny: Path) -> None:
    model = SentenceTransformer(str(tiny) if which == "tiny" else which, device="cpu")
    made = Tokenising.like(model, PROMPTS)
    assert made is not None
    for task, prompt in PROMPTS.items():
        tokens = made.tokens(MANY, prompt)
        theirs = model.preprocess([prompt + text for text in MANY], task=task)
        ours = made.features(tokens)
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        counts = [len(ids) for ids in model.tokenizer(MANY, add_special_tokens=False, verbose=False)["input_ids"]]
        assert made.count(MANY) == [one.count for one in tokens] == counts


def test_threads_that_tokenise_at_the_same_time_are_in_nobodys_way(tiny: Path) -> None:
    """The library's tokenizer is set anew by each call: "Already borrowed"."""
    encoder = SentenceEncoder.open(str(tiny), device="cpu")
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda n: encoder.count_tokens(MANY) if n % 2 else encoder.prepared(MANY, "query"), range(200))
        )
    assert all(one == found[1] for one in found[1::2])
    assert all(one == found[0] for one in found[::2])
    assert max(one.cost for one in found[0] if one is not None) == LIMIT  # type: ignore[union-attr]


def test_a_model_whose_vectors_depend_on_more_than_the_ids_is_left_to_the_library(tmp_path: Path) -> None:
    model = SentenceTransformer(str(save_tiny_bert(tmp_path, include_prompt=False)), device="cpu")
    assert Tokenising.like(model, PROMPTS) is None
    encoder = SentenceEncoder(model, "tiny", Prompts("query: ", "p: "), batch_size=2)
    theirs = model.encode(TEXTS, prompt="query: ", normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), theirs, atol=1e-5)
    assert [one.count for one in encoder.prepared(TEXTS, "query") if one is not None] == encoder.count_tokens(TEXTS)


def test_a_model_that_reads_its_texts_otherwise_is_left_to_the_library(tiny: Path) -> None:
    model = SentenceTransformer(str(tiny), device="cpu")
    model.tokenizer.padding_side = "left"
    assert Tokenising.like(model, PROMPTS) is None
