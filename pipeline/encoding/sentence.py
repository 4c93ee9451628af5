"""Any SentenceTransformer as an `Encoder`, with its query and passage prompts.

The library is imported by `SentenceEncoder.open` alone: the import takes 6 s, and kiwi-static does not need it. Knows
nothing of indexes; batches that come from several requests are `batcher.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.encoding.encoder import FloatArray
from pipeline.errors import EncoderFailed, InvalidSetting

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Device = Literal["auto", "cpu", "cuda"]

DEFAULT_QUERY_PROMPT = "query: "  # multilingual-E5's
DEFAULT_PASSAGE_PROMPT = "passage: "
DEFAULT_BATCH_SIZE = 32  # texts
_MAX_REAL_TOKENS = 1_000_000  # transformers writes "no limit" as 10^30
_PASSAGE_PROMPT_NAMES = ("document", "passage", "corpus")  # in the library's order


@dataclass(frozen=True, slots=True)
class Prompts:
    """What stands in front of a query and of a passage."""

    query: str
    passage: str


class SentenceEncoder:
    """An `Encoder` over a loaded SentenceTransformer. Batches are sorted by length (by the library); rows are unit float32.

    A blank text gets the zero vector; a text over `max_tokens` is cut by the model.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        name: str,
        prompts: Prompts,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: bool = False,
    ) -> None:
        """`model` is on its device, in the precision to run with; `name` is a readable name for `id`."""
        self._model = model
        self._prompts = prompts
        self._batch_size = batch_size
        self._progress = progress
        self._id = f"{name}:{_fingerprint(model, prompts)[:12]}"
        self._dim = _dimension(model, name)

    @classmethod
    def open(
        cls,
        model: str,
        *,
        device: Device = "auto",
        batch_size: int = DEFAULT_BATCH_SIZE,
        query_prompt: str = DEFAULT_QUERY_PROMPT,
        passage_prompt: str = DEFAULT_PASSAGE_PROMPT,
        progress: bool = False,
    ) -> SentenceEncoder:
        """Loads `model`, a folder or a name on the Hugging Face hub (downloaded once; seconds to minutes).

        Prompts stored in the model win over the given ones. `device` auto is CUDA where there is one; on CUDA the model
        runs in half precision. Raises EncoderFailed for a model that cannot be loaded, InvalidSetting for CUDA without a
        GPU and for a batch size below 1.
        """
        if batch_size < 1:
            raise InvalidSetting("encoder.batch_size", batch_size, ">= 1")
        where = _resolved_device(device)
        loaded = _loaded(model)
        prompts = _prompts_of(loaded, Prompts(query_prompt, passage_prompt))
        name = Path(model).resolve().name if Path(model).is_dir() else model
        encoder = cls(loaded, name, prompts, batch_size=batch_size, progress=progress)  # fingerprint of full precision
        loaded.to(where)
        if where == "cuda":
            loaded.half()
        return encoder

    @property
    def id(self) -> str:
        """`<name>:<fingerprint of weights, configuration, vocabulary and prompts>`."""
        return self._id

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def max_tokens(self) -> int | None:
        limit = self._model.max_seq_length
        return int(limit) if limit is not None and limit < _MAX_REAL_TOKENS else None

    @property
    def prompts(self) -> Prompts:
        return self._prompts

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return self._encoded(texts, self._prompts.query, "query")

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        return self._encoded(texts, self._prompts.passage, "document")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The model's tokens of each text, without prompt and special tokens."""
        if not texts:
            return []
        own_counter = getattr(self._model[0], "count_tokens", None)
        if own_counter is not None:
            return list(own_counter(texts))
        tokenizer = self._model.tokenizer
        if hasattr(tokenizer, "encode_batch"):  # the tokenizers library's, in static embedding models
            return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def _encoded(self, texts: Sequence[str], prompt: str, task: str) -> FloatArray:
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        written = [number for number, text in enumerate(texts) if text.strip()]
        if not written:
            return vectors
        try:
            rows = self._model.encode(
                [texts[number] for number in written],
                prompt=prompt,
                batch_size=self._batch_size,
                show_progress_bar=self._progress,
                convert_to_numpy=True,
                task=task,
            )
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # RuntimeError: out of memory, CUDA failures
            raise EncoderFailed(
                f"the model {self._id} failed on {len(written)} texts: {error}",
                "lower encoder.batch_size if memory ran out, or set encoder.device to cpu",
            ) from error
        vectors[written] = self._checked_unit(np.asarray(rows, dtype=np.float32))
        return vectors

    def _checked_unit(self, rows: FloatArray) -> FloatArray:
        if not np.isfinite(rows).all():
            raise EncoderFailed(
                f"the model {self._id} gave vectors with NaN or infinity",
                "set encoder.device to cpu: half precision overflows in some models",
            )
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


def _resolved_device(device: Device) -> Literal["cpu", "cuda"]:
    import torch  # noqa: PLC0415 - as the library, on demand

    if device not in ("auto", "cpu", "cuda"):
        raise InvalidSetting("encoder.device", device, "auto, cpu or cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InvalidSetting("encoder.device", device, "auto or cpu: torch sees no CUDA device here")
    return "cuda" if available and device != "cpu" else "cpu"


def _loaded(model: str) -> SentenceTransformer:
    """The model on the CPU in single precision."""
    from safetensors import SafetensorError  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - 6 s, on demand

    try:
        loaded = SentenceTransformer(model, device="cpu")
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        LookupError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise EncoderFailed(f"the encoder model {model!r} cannot be loaded: {error}", _cure(model)) from error
    return loaded.float()


def _cure(model: str) -> str:
    if Path(model).is_dir():
        return "the folder should be one saved by SentenceTransformer.save: copy it again, or set another encoder.model"
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return "the folder is missing: correct encoder.model"
    return (
        "check the name and the connection to huggingface.co, or download the model elsewhere and set encoder.model to "
        "its folder; encoder.model = 'kiwi-static' needs no download"
    )


def _prompts_of(model: SentenceTransformer, given: Prompts) -> Prompts:
    """The prompts stored in the model if it has one for queries or passages that is not empty, else `given`."""
    stored = model.prompts
    query = stored.get("query") or ""
    passage = next((prompt for name in _PASSAGE_PROMPT_NAMES if (prompt := stored.get(name))), "")
    return Prompts(query, passage) if query or passage else given


def _dimension(model: SentenceTransformer, name: str) -> int:
    dimension = model.get_embedding_dimension()
    if dimension is None:
        raise EncoderFailed(f"the model {name} does not tell its dimension", "set encoder.model to another model")
    return int(dimension)


def _fingerprint(model: SentenceTransformer, prompts: Prompts) -> str:
    """SHA-256 over all that decides a vector: modules and their settings, vocabulary, weights, prompts. 1 s for 1.5 GB."""
    import torch  # noqa: PLC0415

    modules = [(type(module).__name__, _settings_of(module)) for module in model]
    vocabulary: dict[str, int] = getattr(getattr(model[0], "tokenizer", None), "get_vocab", dict)()
    described = [modules, sorted(vocabulary.items()), [prompts.query, prompts.passage]]
    digest = hashlib.sha256(json.dumps(described, default=str, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings_of(module: object) -> dict[str, object]:
    settings: dict[str, object] = getattr(module, "get_config_dict", dict)()
    return settings | {"max_seq_length": getattr(module, "max_seq_length", None)}
