"""Settings → the parts that rows depend on: what reads queries, makes passages and encodes, in this process or in one of its
own; and what must be told of them to another process that wants to ask the same collection (its recipe).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pipeline.encoding.encoder import Encoder
from pipeline.encoding.line import LinedEncoder, for_searches
from pipeline.encoding.opening import open_encoder, open_table, reads_morphemes
from pipeline.index.fields import LexicalParameters
from pipeline.index.manifest import Manifest
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters, MakesPassages, Passages
from pipeline.reading import EncoderApart, Order, ReadingProcess
from pipeline.retrieval.fusion import default_alpha
from pipeline.retrieval.searcher import FusionParameters
from pipeline.retrieval.understanding import QueryReader, Reader
from pipeline.settings import Settings
from pipeline.storage.manifests import Recipe

_GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg")  # the driver's device files on Linux and in WSL
# The settings that rows depend on, by section; batch sizes, devices and folders are a machine's own business.
_OF_ENCODER = ("model", "query_prompt", "passage_prompt")
_OF_CHUNKING = ("max_tokens", "overlap_sentences")


class Parts(Protocol):
    """What reads and encodes, and the settings it was made of."""

    @property
    def settings(self) -> Settings: ...

    @property
    def encoder(self) -> Encoder: ...

    @property
    def reader(self) -> Reader:
        """What reads queries."""

    @property
    def passages(self) -> MakesPassages: ...

    @property
    def manifest(self) -> Manifest:
        """What an index made now would be built with."""

    def following(self, recipe: Recipe) -> Parts:
        """The parts for `recipe`: these, where it asks for nothing else."""

    @property
    def ready(self) -> bool:
        """Whether they can be used now."""

    def wait(self) -> None:
        """Until they can be used. Raises what Kiwi and the encoder raise at their start."""

    def close(self) -> None:
        """Ends what runs; may be called twice."""


@dataclass(frozen=True)
class PartsHere:
    """Kiwi and the encoder in this process."""

    settings: Settings
    analyser: Analyser
    encoder: Encoder

    @classmethod
    def open(
        cls, settings: Settings, analyser: Callable[[], Analyser] | None = None, *, progress: bool = False
    ) -> PartsHere:
        """Starts Kiwi, unless `analyser` gives one that was started for these settings, and the encoder."""
        kiwi = analyser() if analyser is not None else analyser_of(settings)
        return cls(settings, kiwi, encoder_of(settings, kiwi, progress=progress))

    @cached_property
    def reader(self) -> QueryReader:
        """Ahead of those who have something else encoded."""
        return QueryReader(self.analyser, for_searches(self.encoder))

    @cached_property
    def passages(self) -> Passages:
        return Passages(self.analyser, self.encoder, chunking_parameters(self.settings))

    @cached_property
    def manifest(self) -> Manifest:
        return _manifest(self.settings, self.analyser.fingerprint, self.encoder)

    def following(self, recipe: Recipe) -> Parts:
        settings = settings_with(self.settings, recipe)
        same = settings.user_words == self.settings.user_words and self.analyser.is_up_to_date(settings.user_words)
        if same and recipe_of(settings) == recipe_of(self.settings):
            return self
        following = PartsHere.open(settings, (lambda: self.analyser) if same else None)
        if isinstance(self.encoder, LinedEncoder) and isinstance(following.encoder, LinedEncoder):
            following.encoder.observe = self.encoder.observe
        return following

    @property
    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        """They are ready."""

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class PartsApart:
    """Kiwi and a kiwi-static in a process of their own."""

    settings: Settings
    process: ReadingProcess
    encoder: EncoderApart

    @classmethod
    def open(cls, settings: Settings, process: ReadingProcess) -> PartsApart | None:
        """Around `process`, which was started for these settings. None where the encoder's table is in no file, to be read by
        two."""
        chosen = settings.encoder
        table = open_table(chosen.model, chosen.cache_dir)
        if table is None:  # it is derived there, once
            process.wait()
            table = open_table(chosen.model, chosen.cache_dir)
        return cls(settings, process, EncoderApart(process, table)) if table is not None else None

    @property
    def reader(self) -> ReadingProcess:
        return self.process

    @property
    def passages(self) -> ReadingProcess:
        return self.process

    @cached_property
    def manifest(self) -> Manifest:
        return _manifest(self.settings, self.process.order.tokenizer, self.encoder)

    def following(self, recipe: Recipe) -> Parts:
        settings = settings_with(self.settings, recipe)
        if recipe_of(settings) == recipe_of(self.settings) and Order.of(settings) == self.process.order:
            return self
        with Starting(settings, apart=ReadingProcess.started(settings)) as starting:
            following = starting.opened(settings)
            following.wait()
            return following

    @property
    def ready(self) -> bool:
        return self.process.ready

    def wait(self) -> None:
        self.process.wait()

    def close(self) -> None:
        self.process.close()


class Starting:
    """Parts that start for `settings` before it is known that nothing else decides them.

    `apart` is a process that was started for them, and `analyser` gives a Kiwi that was.
    """

    def __init__(
        self,
        settings: Settings,
        analyser: Callable[[], Analyser] | None = None,
        *,
        apart: ReadingProcess | None = None,
    ) -> None:
        self._settings = settings
        self._process = apart
        self._pool = ThreadPoolExecutor(1)
        self._analyser = self._pool.submit(analyser or (lambda: analyser_of(settings))) if not self._process else None

    def __enter__(self) -> Starting:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is not None and self._process is not None:
            self._process.close()

    def opened(self, settings: Settings, *, progress: bool = False) -> Parts:
        """The parts for `settings`, begun anew where they are others. Raises what Kiwi and the encoder raise."""
        process = self._process
        if process is not None and not (
            reads_morphemes(settings.encoder.model) and Order.of(settings) == process.order
        ):
            process.close()
            self._process = process = ReadingProcess.started(settings)
        if process is not None:
            parts = PartsApart.open(settings, process)
            if parts is not None:
                return parts
            process.close()
        same_words = settings.user_words == self._settings.user_words
        known = self._analyser.result if self._analyser is not None and same_words else None
        return PartsHere.open(settings, known, progress=progress)


def recipe_of(settings: Settings) -> Recipe:
    """What rows made with `settings` depend on, as JSON."""
    return {
        "encoder": {name: getattr(settings.encoder, name) for name in _OF_ENCODER},
        "chunking": {name: getattr(settings.chunking, name) for name in _OF_CHUNKING},
        "user_words": None if settings.user_words is None else str(settings.user_words.absolute()),
    }


def settings_with(settings: Settings, recipe: Recipe, *, unless_given: bool = False) -> Settings:
    """`settings` with what `recipe` says; `unless_given`: what somebody has set himself stays."""
    changes: dict[str, object] = {}
    for name in ("encoder", "chunking"):
        section = getattr(settings, name)
        kept = section.model_fields_set if unless_given else ()
        told = {field: value for field, value in recipe.get(name, {}).items() if field not in kept}
        changes[name] = section.model_copy(update=told)
    if "user_words" in recipe and not (unless_given and "user_words" in settings.model_fields_set):
        words = recipe["user_words"]
        changes["user_words"] = None if words is None else Path(words)
    return settings.model_copy(update=changes)


def analyser_of(settings: Settings) -> Analyser:
    """Kiwi with the dictionaries that the settings name."""
    return Analyser.open(settings.user_words, synonyms=settings.synonyms)


def encoder_of(settings: Settings, analyser: Analyser, *, progress: bool = False) -> Encoder:
    """The encoder that the settings name."""
    chosen = settings.encoder
    return open_encoder(
        chosen.model,
        analyser.kiwi,
        device=chosen.device,
        batch_size=chosen.batch_size,
        batch_tokens=chosen.batch_tokens,
        queue=chosen.queue,
        query_prompt=chosen.query_prompt,
        passage_prompt=chosen.passage_prompt,
        cache_dir=chosen.cache_dir,
        progress=progress,
    )


def chunking_parameters(settings: Settings) -> ChunkingParameters:
    return ChunkingParameters(settings.chunking.max_tokens, settings.chunking.overlap_sentences)


def lexical_parameters(settings: Settings) -> LexicalParameters:
    return LexicalParameters(**settings.lexical.model_dump())


def fusion_parameters(settings: Settings, manifest: Manifest) -> FusionParameters:
    """The fusion in force: the weight of the settings, or the one measured for the encoder."""
    chosen = settings.fusion
    return FusionParameters(
        method=chosen.method,
        alpha=manifest.alpha if chosen.alpha is None else chosen.alpha,
        rrf_k=chosen.rrf_k,
        candidates=chosen.candidates,
        adaptive=chosen.adaptive,
    )


def _manifest(settings: Settings, tokenizer: str, encoder: Encoder) -> Manifest:
    return Manifest(
        encoder=encoder.id,
        dim=encoder.dim,
        tokenizer=tokenizer,
        max_tokens=settings.chunking.max_tokens,
        overlap_sentences=settings.chunking.overlap_sentences,
        alpha=default_alpha(encoder.id),
    )


def device_of(settings: Settings) -> str:
    """`cpu` or `cuda`, where the resident vectors live."""
    if settings.encoder.device != "auto":
        return settings.encoder.device
    if not any(Path(sign).exists() for sign in _GPU_SIGNS):
        return "cpu"  # torch would say the same, after a second of importing
    import torch  # noqa: PLC0415 - a second to import: only where there may be a GPU

    return "cuda" if torch.cuda.is_available() else "cpu"
