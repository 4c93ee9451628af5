"""From the setting `encoder.model` to an encoder: the only place that knows which kinds there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kiwipiepy import Kiwi

from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.encoding.kiwi_static import NAME as KIWI_STATIC
from pipeline.encoding.kiwi_static import KiwiStaticEncoder, WeightedTable
from pipeline.encoding.kiwi_table import MorphemeTable
from pipeline.encoding.trained_table import is_trained_kiwi_static, open_trained_kiwi_static, trained_table
from pipeline.encoding.word_probabilities import default_probabilities

if TYPE_CHECKING:
    from pipeline.encoding.sentence import Device


def reads_morphemes(model: str) -> bool:
    """Whether the encoder `model` is a kiwi-static, shipped or trained."""
    return model == KIWI_STATIC or is_trained_kiwi_static(Path(model))


def open_table(model: str, cache_dir: Path | None = None) -> WeightedTable | None:
    """The table of the kiwi-static `model` without Kiwi; None where it has not been derived yet.

    Raises EncoderFailed for a trained one that is damaged or of another Kiwi model.
    """
    if model != KIWI_STATIC:
        return trained_table(Path(model))
    table = MorphemeTable.cached(cache_dir)
    return WeightedTable(table, default_probabilities(table.version)) if table is not None else None


def open_encoder(
    model: str,
    kiwi: Kiwi,
    *,
    device: Device = "auto",
    batch_size: int = 256,
    batch_tokens: int | None = None,
    queue: int = 4096,
    query_prompt: str = "query: ",
    passage_prompt: str = "passage: ",
    probabilities: FloatArray | None = None,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Encoder:
    """The encoder `model`: `kiwi-static`, a folder with a trained kiwi-static, or any SentenceTransformer (folder, hub name).

    `device`, the batches, the queue (texts that may wait for their embedding) and the prompts are for SentenceTransformers, which
    have a line before them; `probabilities` (an index's frozen word probabilities) and `cache_dir` for `kiwi-static`. Raises
    what the encoders' `open` raise.
    """
    if model == KIWI_STATIC:
        return KiwiStaticEncoder.open(kiwi, cache_dir=cache_dir, probabilities=probabilities, progress=progress)
    if is_trained_kiwi_static(Path(model)):
        return open_trained_kiwi_static(Path(model), kiwi)
    from pipeline.encoding.line import Line, LinedEncoder  # noqa: PLC0415 - what kiwi-static does not need
    from pipeline.encoding.sentence import SentenceEncoder  # noqa: PLC0415

    opened = SentenceEncoder.open(
        model,
        device=device,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
    )
    return LinedEncoder(Line(opened, waiting=queue))
