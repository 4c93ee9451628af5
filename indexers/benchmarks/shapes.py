"""Sentence encoders to be measured: of a folder, or of a known shape with random weights, on which the speed does not depend;
texts that have exactly so many tokens there; and how much there is to be computed for one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInput

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from pipeline.encoding.sentence import SentenceEncoder

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_POSITIONS = 512
_WORD = re.compile(r"[^\W\d_]{2,}")  # letters
_TRIED = 5_000  # words of a vocabulary: enough for texts that are all different


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer's dimensions; `embedding` is the width of its embeddings where ELECTRA has a narrower one."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    embedding: int | None = None


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "koelectra-small": Shape(256, 12, 4, 1024, 35_000, embedding=128),  # monologg/koelectra-small-v3
        "bert-base": Shape(768, 12, 12, 3072, 32_000),
        "tiny": Shape(32, 2, 2, 64, 500),  # for tests
    }
)


def made(name: str, folder: Path) -> Path:
    """A SentenceTransformer of the shape `name`, mean pooling, in `folder`: its place. Raises InvalidInput."""
    if name not in SHAPES:
        raise InvalidInput(f"there is no shape {name!r}", f"choose among {', '.join(SHAPES)}")
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds, on demand
    from sentence_transformers.base.modules import Transformer  # noqa: PLC0415
    from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: PLC0415

    bare = folder / f"{name}-bare"
    _save_transformer(SHAPES[name], bare)
    transformer = Transformer(str(bare), max_seq_length=_POSITIONS)
    model = SentenceTransformer(modules=[transformer, Pooling(SHAPES[name].hidden, "mean")], device="cpu")
    model.save(str(folder / name))
    return folder / name


def _save_transformer(shape: Shape, folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415 - as above
    from transformers import (  # noqa: PLC0415
        BertConfig,
        BertModel,
        ElectraConfig,
        ElectraModel,
        PreTrainedTokenizerFast,
    )

    words = [chr(ord("가") + n // 26) + chr(ord("a") + n % 26) for n in range(shape.vocabulary - len(_SPECIAL))]
    vocabulary = {piece: number for number, piece in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    dimensions: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": _POSITIONS,
    }
    if shape.embedding is None:
        BertModel(BertConfig(**dimensions)).save_pretrained(folder)
    else:
        ElectraModel(ElectraConfig(**dimensions, embedding_size=shape.embedding)).save_pretrained(folder)
    names = {f"{piece[1:-1].lower()}_token": piece for piece in _SPECIAL}
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=_POSITIONS, **names
    ).save_pretrained(folder)


def texts(encoder: SentenceEncoder, length: int, count: int) -> list[str]:
    """As many texts, all different, of exactly `length` tokens as the model reads them, special ones included.

    Raises InvalidInput for a length that no text has.
    """
    words = _words(encoder)
    around = 0
    for one in encoder.prepared([" ".join(words[:4])], "document"):
        around = one.cost - 4 if one is not None else 0
    if not around < length <= (encoder.max_tokens or length):
        raise InvalidInput(
            f"no text has {length} tokens in this model", f"choose between {around + 1} and {encoder.max_tokens}"
        )
    chance = random.Random(length)
    made = [" ".join(chance.choices(words, k=length - around)) for _ in range(count)]
    fitting = [t for t, one in zip(made, encoder.prepared(made, "document"), strict=True) if one and one.cost == length]
    if not fitting:
        raise InvalidInput(f"this model's tokens do not add up to {length}", "choose another model or length")
    return fitting


def _words(encoder: SentenceEncoder) -> list[str]:
    """Words that are one token each."""
    pieces = sorted(encoder.model.tokenizer.get_vocab())
    random.Random(0).shuffle(pieces)
    words = [piece.lstrip("▁Ġ") for piece in pieces[: 4 * _TRIED]]
    words = [word for word in words if _WORD.fullmatch(word)][:_TRIED]
    return [word for word, tokens in zip(words, encoder.count_tokens(words), strict=True) if tokens == 1]


def flops_a_token(model: SentenceTransformer, length: int) -> float:
    """Floating-point operations of a forward pass for one token of a text of `length`.

    2 for each weight of the products, and for the two products of attention 4 · layers · length · hidden (Kaplan et al. 2020,
    "Scaling Laws for Neural Language Models", table 1; both halves of the square here, as nothing is masked). Lookups,
    norms and the softmax are left out.
    """
    transformer: Any = next(iter(model))
    config = transformer.auto_model.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    narrow = getattr(config, "embedding_size", hidden)
    weights += narrow * hidden if narrow != hidden else 0
    return float(2 * weights + 4 * layers * length * hidden)
