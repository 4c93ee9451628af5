"""Texts as the numbers that a transformer reads, made one by one and padded only when it is known who goes together.

The library makes them for a whole batch, with a tokenizer that each call sets anew, so that two threads are in each other's way.
Here they are made when a text comes in, by any thread, once for everything: its batch, the model and the count for the caller.
Whether that comes to the same is seen by trying: where the library makes anything else of a few texts, this module is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Encoding, Tokenizer

_LONG = "은행 a loan, 1 "  # again and again it is longer than any model reads
_PROBES = ("", " a  b ", "은행에서 돈을 빌리는 방법, and a Loan of €1!")
# So many are done before a batch of them has its threads together; and one by one the GIL is kept, which in a busy process is
# given back after milliseconds only.
_FEW = 4
_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
_KINDS = (
    "Transformer",
    "Pooling",
    "Normalize",
    "Dense",
    "LayerNorm",
    "Dropout",
)  # the same for any task and any neighbour


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as ids, with the prompt and special tokens, cut at the model's limit; `count` of them are the text's own, uncut."""

    ids: Sequence[int]
    types: Sequence[int]
    count: int


@dataclass(frozen=True, slots=True)
class Tokenising:
    """A model's tokenizer with its settings fixed; thread-safe. `features` of the library are always the same beside `Tokens`."""

    tokenizer: Tokenizer  # its own copy: the model's is reset by each call of the library
    specials: int  # tokens around each text
    padding: Mapping[str, int]  # features that are tensors → what fills the room behind a text
    constant: Mapping[str, Any]

    @classmethod
    def like(cls, model: SentenceTransformer, prompts: Mapping[str, str]) -> Tokenising | None:
        """What comes to the same as `model.preprocess` with each task and its prompt; None where nothing here does."""
        from tokenizers import Tokenizer  # noqa: PLC0415 - of the library's, as that on demand

        wrapper: Any = getattr(model[0], "tokenizer", None)
        backend, limit = getattr(wrapper, "backend_tokenizer", None), model.max_seq_length
        plain = all(type(module).__name__ in _KINDS and getattr(module, "include_prompt", True) for module in model)
        if not plain or not isinstance(backend, Tokenizer) or model.truncate_dim is not None:
            return None
        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_padding()
        if limit is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(limit)
        probes = [*_PROBES, _LONG * (limit or 1)]
        theirs = [
            (prompt, model.preprocess([prompt + probe for probe in probes], task=task))
            for task, prompt in prompts.items()
        ]
        filling = {_IDS: wrapper.pad_token_id, _MASK: 0, _TYPES: wrapper.pad_token_type_id}
        made = cls(
            tokenizer=tokenizer,
            specials=tokenizer.num_special_tokens_to_add(False),
            padding={name: filling.get(name, 0) for name, value in theirs[0][1].items() if hasattr(value, "shape")},
            constant={name: value for name, value in theirs[0][1].items() if not hasattr(value, "shape")},
        )
        alike = (_alike(made.features(made.tokens(probes, prompt)), features) for prompt, features in theirs)
        return made if all(alike) else None

    def tokens(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        """Of each of `texts`, with `prompt` in front."""
        before = self.count([prompt])[0] if prompt else 0
        encodings = self._encodings([prompt + text for text in texts] if prompt else texts)
        return [Tokens(e.ids, e.type_ids, max(0, self._length(e) - before)) for e in encodings]

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has by itself, without special ones, however long it is."""
        return [self._length(encoding) for encoding in self._encodings(texts)]

    def features(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """What the model reads: int64 tensors (texts, longest text), padded behind."""
        import torch  # noqa: PLC0415 - a second to import, on demand

        longest = max(len(tokens.ids) for tokens in batch)
        arrays = {name: np.full((len(batch), longest), fill, np.int64) for name, fill in self.padding.items()}
        for row, tokens in enumerate(batch):
            for name, array in arrays.items():
                array[row, : len(tokens.ids)] = _values(name, tokens)
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | dict(self.constant)

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        if len(texts) > _FEW:
            return self.tokenizer.encode_batch(list(texts))
        return [self.tokenizer.encode(text) for text in texts]

    def _length(self, encoding: Encoding) -> int:
        return sum(len(part.ids) - self.specials for part in (encoding, *encoding.overflowing))


def _values(name: str, tokens: Tokens) -> Sequence[int] | int:
    if name == _IDS:
        return tokens.ids
    return tokens.types if name == _TYPES else 1


def _alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    import torch  # noqa: PLC0415 - as above

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.equal(one, other)
        return bool(one == other)

    return set(ours) <= {_IDS, _MASK, _TYPES, *theirs} and all(same(ours.get(name), theirs[name]) for name in theirs)
