"""Settings → the parts that rows depend on: Kiwi, the encoder, the maker of passages; and what must be told of them to
another process that wants to ask the same collection (its recipe).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.encoding.encoder import Encoder
from pipeline.encoding.line import LinedEncoder, for_searches
from pipeline.encoding.opening import open_encoder
from pipeline.index.fields import LexicalParameters
from pipeline.index.manifest import Manifest
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters, Passages
from pipeline.retrieval.fusion import default_alpha
from pipeline.retrieval.searcher import FusionParameters
from pipeline.retrieval.understanding import QueryReader
from pipeline.settings import Settings
from pipeline.storage.manifests import Recipe

_GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg")  # the driver's device files on Linux and in WSL
# The settings that rows depend on, by section; batch sizes, devices and folders are a machine's own business.
_OF_ENCODER = ("model", "query_prompt", "passage_prompt")
_OF_CHUNKING = ("max_tokens", "overlap_sentences")


@dataclass(frozen=True)
class Parts:
    """What analyses and encodes, open, and the settings it was made of."""

    settings: Settings
    analyser: Analyser
    encoder: Encoder

    @classmethod
    def open(
        cls, settings: Settings, analyser: Callable[[], Analyser] | None = None, *, progress: bool = False
    ) -> Parts:
        """Starts Kiwi, unless `analyser` gives one that was started for these settings, and the encoder."""
        kiwi = analyser() if analyser is not None else analyser_of(settings)
        return cls(settings, kiwi, encoder_of(settings, kiwi, progress=progress))

    @cached_property
    def reader(self) -> QueryReader:
        """What reads queries, ahead of those who have something else encoded."""
        return QueryReader(self.analyser, for_searches(self.encoder))

    @cached_property
    def passages(self) -> Passages:
        return passages_of(self.settings, self.analyser, self.encoder)

    @cached_property
    def manifest(self) -> Manifest:
        """What an index made now would be built with."""
        return running_manifest(self.settings, self.analyser, self.encoder)

    def following(self, recipe: Recipe) -> Parts:
        """The parts for `recipe`: these, where it asks for nothing else."""
        settings = settings_with(self.settings, recipe)
        same = settings.user_words == self.settings.user_words and self.analyser.is_up_to_date(settings.user_words)
        if same and recipe_of(settings) == recipe_of(self.settings):
            return self
        following = Parts.open(settings, (lambda: self.analyser) if same else None)
        if isinstance(self.encoder, LinedEncoder) and isinstance(following.encoder, LinedEncoder):
            following.encoder.observe = self.encoder.observe
        return following


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


def passages_of(settings: Settings, analyser: Analyser, encoder: Encoder) -> Passages:
    """The maker of passages that the settings describe."""
    return Passages(analyser, encoder, chunking_parameters(settings))


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


def running_manifest(settings: Settings, analyser: Analyser, encoder: Encoder) -> Manifest:
    """What an index made now would be built with."""
    return Manifest(
        encoder=encoder.id,
        dim=encoder.dim,
        tokenizer=analyser.fingerprint,
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
