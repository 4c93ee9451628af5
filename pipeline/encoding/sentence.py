"""Any SentenceTransformer as an `Encoder`, with its query and passage prompts.

The library is imported by `SentenceEncoder.open` alone: the import takes 6 s, and kiwi-static does not need it. Knows
nothing of indexes; batches of texts that come from several threads are `line.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.tokens import Tokenising, Tokens
from pipeline.errors import EncoderFailed, InvalidSetting

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Device = Literal["auto", "cpu", "cuda"]
Task = Literal["query", "document"]  # as the library calls them

DEFAULT_QUERY_PROMPT = "query: "  # multilingual-E5's
DEFAULT_PASSAGE_PROMPT = "passage: "
DEFAULT_BATCH_SIZE = 256  # texts
# Tokens of a batch, its padding included. Two cores are at their best from 500 on (MiniLM: 16 tokens 3.8 times as many a second
# as one by one, 256 tokens no more than one by one), and a search waits for one batch at most. A GPU is filled by some thousands.
CPU_BATCH_TOKENS = 512
CUDA_BATCH_TOKENS = 16_384
_MOST_WORKERS = 4  # beyond, several processors share a batch: one text should not take as long as on a small machine
_AT_ONCE = 2_048  # texts that are tokenised and sorted together
_MAX_REAL_TOKENS = 1_000_000  # transformers writes "no limit" as 10^30
_PASSAGE_PROMPT_NAMES = ("document", "passage", "corpus")  # in the library's order


@dataclass(frozen=True, slots=True)
class Prompts:
    """What stands in front of a query and of a passage."""

    query: str
    passage: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text with content, ready for the model. `cost`: its tokens there; `count`: its own, as `count_tokens` gives them."""

    text: str
    task: Task
    tokens: Tokens | None  # None: the library tokenises
    cost: int
    count: int


class SentenceEncoder:
    """An `Encoder` over a loaded SentenceTransformer, in batches of texts of like length. Rows are unit float32. Thread-safe as
    the model is: for inference.

    A blank text gets the zero vector; a text over `max_tokens` is cut by the model.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        name: str,
        prompts: Prompts,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        batch_tokens: int | None = None,
    ) -> None:
        """`model` is on its device, in the precision to run with; `name` is a readable name for `id`. A batch has at most
        `batch_size` texts and, padded, `batch_tokens` tokens (None: what is best on the device), or one text."""
        self._model = model.eval()
        self._prompts = prompts
        self.batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._prompt_of: dict[str, str] = {"query": prompts.query, "document": prompts.passage}
        self._tokenising = Tokenising.like(model, self._prompt_of)  # None: the library does it
        self._id = f"{name}:{_fingerprint(model, prompts)[:12]}"
        self._dim = _dimension(model, name)

    @classmethod
    def open(
        cls,
        model: str,
        *,
        device: Device = "auto",
        batch_size: int = DEFAULT_BATCH_SIZE,
        batch_tokens: int | None = None,
        query_prompt: str = DEFAULT_QUERY_PROMPT,
        passage_prompt: str = DEFAULT_PASSAGE_PROMPT,
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
        # Before it is moved: the fingerprint is of full precision.
        encoder = cls(loaded, name, prompts, batch_size=batch_size, batch_tokens=batch_tokens)
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

    @property
    def model(self) -> SentenceTransformer:
        """The library's, on its device."""
        return self._model

    @property
    def batch_tokens(self) -> int:
        """Most tokens of a batch, padding included."""
        return self._batch_tokens or (CUDA_BATCH_TOKENS if self._model.device.type == "cuda" else CPU_BATCH_TOKENS)

    @property
    def workers(self) -> int:
        """How many batches should be worked on at once. On processors each by its own: several on one wait for each other longer
        than they work as soon as anybody else has something to do there. On a GPU one is read back while the next is sent."""
        return 2 if self._model.device.type == "cuda" else min(_processors(), _MOST_WORKERS)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return self._encoded(texts, "query")

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        return self._encoded(texts, "document")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The model's tokens of each text, without prompt and special tokens."""
        if not texts:
            return []
        if self._tokenising is not None:
            return self._tokenising.count(texts)
        own_counter = getattr(self._model[0], "count_tokens", None)
        if own_counter is not None:
            return list(own_counter(texts))
        tokenizer = self._model.tokenizer
        if hasattr(tokenizer, "encode_batch"):  # the tokenizers library's, in static embedding models
            return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def prepared(self, texts: Sequence[str], task: Task) -> list[Prepared | None]:
        """Each of `texts` ready for `rows`; None for a blank one. By the processor alone; the tokenizer leaves the GIL."""
        written = [text for text in texts if text.strip()]
        made: Iterator[Prepared]
        if self._tokenising is not None:
            found = self._tokenising.tokens(written, self._prompt_of[task])
            made = (Prepared(text, task, t, len(t.ids), t.count) for text, t in zip(written, found, strict=True))
        else:
            prompt, *counts = self.count_tokens([self._prompt_of[task], *written])
            longest = self.max_tokens or max(counts, default=0)
            made = (
                Prepared(text, task, None, min(longest, max(1, prompt + count)), count)
                for text, count in zip(written, counts, strict=True)
            )
        return [next(made) if text.strip() else None for text in texts]

    def rows(self, batch: Sequence[Prepared]) -> FloatArray:
        """Unit vectors of `batch`, which the model reads at once: float32 (n, dim). Raises EncoderFailed."""
        try:
            rows = self._rows(batch)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # RuntimeError: out of memory, CUDA failures
            raise EncoderFailed(
                f"the model {self._id} failed on {len(batch)} texts: {error}",
                "lower encoder.batch_tokens if memory ran out, or set encoder.device to cpu",
            ) from error
        return self._checked_unit(rows)

    def _encoded(self, texts: Sequence[str], task: Task) -> FloatArray:
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        for start in range(0, len(texts), _AT_ONCE):
            prepared = self.prepared(texts[start : start + _AT_ONCE], task)
            written = [(start + place, one) for place, one in enumerate(prepared) if one is not None]
            written.sort(key=lambda pair: -pair[1].cost)
            for batch in _batches(written, self.batch_size, self.batch_tokens):
                vectors[[place for place, _ in batch]] = self.rows([one for _, one in batch])
        return vectors

    def _rows(self, batch: Sequence[Prepared]) -> FloatArray:
        import torch  # noqa: PLC0415 - loaded long ago

        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, _processors() // self.workers))
        try:
            tokens = [one.tokens for one in batch if one.tokens is not None]
            if self._tokenising is None or len(tokens) < len(batch):
                return self._by_the_library(batch)
            with torch.inference_mode():
                features = self._tokenising.features(tokens)
                there = {n: f.to(self._model.device) if isinstance(f, torch.Tensor) else f for n, f in features.items()}
                found: FloatArray = self._model(there)["sentence_embedding"].float().cpu().numpy()
            return found
        finally:
            torch.set_num_threads(threads)  # of this thread; but a new one begins with what was set last in any

    def _by_the_library(self, batch: Sequence[Prepared]) -> FloatArray:
        rows = np.zeros((len(batch), self._dim), dtype=np.float32)
        for task, prompt in self._prompt_of.items():
            places = [place for place, one in enumerate(batch) if one.task == task]
            if places:
                rows[places] = self._model.encode(
                    [batch[place].text for place in places],
                    prompt=prompt,
                    batch_size=len(places),
                    show_progress_bar=False,
                    convert_to_numpy=True,
                    task=task,
                )
        return rows

    def _checked_unit(self, rows: FloatArray) -> FloatArray:
        if not np.isfinite(rows).all():
            raise EncoderFailed(
                f"the model {self._id} gave vectors with NaN or infinity",
                "set encoder.device to cpu: half precision overflows in some models",
            )
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


@cache
def _processors() -> int:
    """For torch, as the environment or the machine says: asked once, for other threads set it for a moment."""
    import torch  # noqa: PLC0415 - as the library, on demand

    return torch.get_num_threads()


def _batches(
    sorted_: Sequence[tuple[int, Prepared]], most: int, budget: int
) -> Iterator[Sequence[tuple[int, Prepared]]]:
    """Neighbours in `sorted_`, the longest first, as many as a batch may have."""
    start = 0
    while start < len(sorted_):
        end = start + max(1, min(most, budget // sorted_[start][1].cost))
        yield sorted_[start:end]
        start = end


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
