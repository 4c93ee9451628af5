"""How often each content morpheme occurs in Korean: p(morpheme), for the weights of `kiwi-static`, and p(form), for telling
common words from rare ones.

The shipped table was counted over 13.4 million characters of articles of the everyday-law portal easylaw.go.kr (free
use) and 169,392 Korean passages of public repositories: easylaw; documentation of Microsoft (SQL Server, .NET, Dynamics,
Visual Studio, C++, Windows Server, Intune, Azure, Power BI …), MDN, TensorFlow, Kubernetes, React, Vue, Rust, Adobe,
PyTorch, TypeScript, Kaia, Hugging Face (mostly CC BY 4.0); petitions and economic terms (KOGL 1); KoBEST BoolQ
passages (CC BY-SA 4.0); engineering blogs and open-source manuals of Korean companies. It holds counts, no text.

Knows nothing of vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

import numpy as np
from kiwipiepy import Kiwi, Token
from numpy.typing import NDArray

from pipeline.encoding.content import ContentReader
from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.kiwi_table import model_version, vocabulary_size
from pipeline.errors import EncoderFailed

log = logging.getLogger(__name__)

_COUNTED_WITH = "0.24.0"  # the Kiwi model whose ids the shipped table has
_FILE = "word_probabilities.npy"  # uint8 (70488,)
_STEPS = 10  # of the shipped table in a halving of p: 7% apart, nothing for a weight a / (a + p)
_UNSEEN = 255


def count_probabilities(kiwi: Kiwi, texts: Iterable[str]) -> FloatArray:
    """p(morpheme id) over the content morphemes of `texts`: float32 (V,), sums to 1 (all 0 without any content).

    Runs Kiwi over everything: some 0.2 M characters a second on two cores.
    """
    size = vocabulary_size(kiwi)
    reader = ContentReader(kiwi, size)
    counts = np.zeros(size, dtype=np.int64)
    for tokens in kiwi.tokenize(iter(texts)):
        analysed: list[Token] = tokens
        rows = reader.read([analysed]).rows
        np.add.at(counts, rows, 1)
    return probabilities_of_counts(counts)


def probabilities_of_counts(counts: NDArray[np.int64]) -> FloatArray:
    """Shares of `counts` (V,) of content morphemes: float32, sums to 1 (all 0 where nothing was counted)."""
    return (counts / max(int(counts.sum()), 1)).astype(np.float32)


def default_probabilities(version: str) -> FloatArray:
    """The shipped p for the Kiwi model `version`: float32 (V,). Raises EncoderFailed for a model it was not counted with."""
    if version != _COUNTED_WITH:
        raise EncoderFailed(
            f"the shipped word probabilities have the ids of Kiwi model {_COUNTED_WITH}, running is {version}",
            f"install kiwipiepy_model=={_COUNTED_WITH}, or count probabilities of your own (count_probabilities)",
        )
    with resources.files(__package__).joinpath(_FILE).open("rb") as file:
        codes = np.load(file, allow_pickle=False)
    return unpacked(codes)


@lru_cache(maxsize=1)
def form_probabilities(kiwi: Kiwi) -> dict[str, float]:
    """Lower-cased form → p of the content morphemes that are written so, together; a form that is not here was never
    seen as one morpheme.

    Empty for a Kiwi model that the shipped table was not counted with.
    """
    try:
        probabilities = default_probabilities(model_version())
    except EncoderFailed as error:
        log.warning("every word counts as rare: %s", error)
        return {}
    found: dict[str, float] = {}
    for row in np.flatnonzero(probabilities).tolist():
        form = kiwi.morpheme(row).form.lower()
        found[form] = found.get(form, 0.0) + float(probabilities[row])
    return found


def packed(probabilities: FloatArray) -> NDArray[np.uint8]:
    """p as steps of a tenth of a halving, as shipped: uint8, 255 for 0."""
    codes = np.full(len(probabilities), _UNSEEN, dtype=np.uint8)
    seen = probabilities > 0
    codes[seen] = np.clip(np.rint(-_STEPS * np.log2(probabilities[seen])), 0, _UNSEEN - 1)
    return codes


def unpacked(codes: NDArray[np.uint8]) -> FloatArray:
    """The inverse of `packed`, to 3.6%."""
    levels = np.exp2(-np.arange(_UNSEEN + 1) / _STEPS).astype(np.float32)
    levels[_UNSEEN] = 0.0
    values: FloatArray = levels[codes]
    return values
