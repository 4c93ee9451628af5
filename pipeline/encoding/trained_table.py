"""A trained kiwi-static as saved by the SentenceTransformer library, read without it and without torch.

The folder's format is that of `kiwi_sentence_module.py`: `config.json` names Kiwi's model, `model.safetensors` holds one
vector a morpheme with the weights of frequent words folded in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from kiwipiepy import Kiwi

from pipeline.encoding.kiwi_static import KiwiStaticEncoder, WeightedTable
from pipeline.encoding.kiwi_table import MorphemeTable, check_model_type, mapped, model_version
from pipeline.errors import EncoderFailed

MODULES_FILE = "modules.json"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_NAME = "embedding.weight"
KIWI_MODEL_KEY = "kiwi_model"
MODULE_TYPE = "pipeline.encoding.kiwi_sentence_module.KiwiStaticModule"


def is_trained_kiwi_static(folder: Path) -> bool:
    """Whether `folder` is a SentenceTransformer whose one module is kiwi-static's."""
    try:
        modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
        return [module["type"] for module in modules] == [MODULE_TYPE]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def open_trained_kiwi_static(folder: Path, kiwi: Kiwi) -> KiwiStaticEncoder:
    """The trained encoder in `folder`. Raises EncoderFailed for a damaged folder or one of another Kiwi model."""
    check_model_type(kiwi)
    weighted = trained_table(folder)
    return KiwiStaticEncoder(kiwi, weighted.table, weighted.probabilities)


def trained_table(folder: Path) -> WeightedTable:
    """The table of the trained encoder in `folder`, memory-mapped. Raises EncoderFailed as above."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        check_kiwi_model(config, str(folder))
        vectors, fingerprint = mapped(folder / WEIGHTS_FILE, WEIGHTS_NAME)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderFailed(
            f"the trained encoder in {folder} cannot be read: {error!r}", "save or copy it again"
        ) from error
    weights_are_in_the_vectors = np.zeros(len(vectors), dtype=np.float32)  # p = 0: every weight is 1
    return WeightedTable(MorphemeTable(vectors, model_version(), fingerprint), weights_are_in_the_vectors)


def check_kiwi_model(config: Mapping[str, Any], where: str) -> None:
    """Raises EncoderFailed where a saved encoder has the morpheme ids of another Kiwi model than the installed one."""
    saved = config.get(KIWI_MODEL_KEY)
    if saved != model_version():
        raise EncoderFailed(
            f"the encoder in {where} was trained on Kiwi model {saved}, installed is {model_version()}",
            f"install kiwipiepy_model=={saved}, or train it again",
        )
