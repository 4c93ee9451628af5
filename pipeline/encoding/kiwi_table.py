"""The embedding table inside Kiwi's language model, recovered from its cosines and kept in the user's cache folder.

Kiwi does not expose its vectors, but tells the cosine of any two morphemes. The table has rank 256, so the cosines with
256 fixed landmarks A (V, 256) determine it up to a rotation: with G = A[landmarks], E = A · chol(G)^-T reproduces every
cosine. Cholesky, not an eigendecomposition: its factor is unique, so that two machines get the same vectors (to 1e-4).

Then "all-but-the-top" (Mu & Viswanath 2018, https://arxiv.org/abs/1702.01417): without the mean and the first eight
principal components, which hold most of the variance and no meaning, rows of length 1. Mean and components are those of
the morphemes that carry content, the only ones that texts are summed of; endings and particles lie elsewhere.

Knows nothing of texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import kiwipiepy_model
import numpy as np
import platformdirs
from kiwipiepy import Kiwi
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from pipeline.encoding.content import ContentReader
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import EncoderFailed, InvalidSetting

DIM = 256  # rank of the table in kiwipiepy_model 0.24: the 257th pivot is 1e-6
_REMOVED_COMPONENTS = 8  # 4, 8, 12, 16, 24 tried: notebooks/LOG.md, "a better table for nothing"
_RECIPE = "cholesky-256, all-but-the-top 8 of content"  # part of the fingerprint: change it with every change of the derivation
_MODEL_TYPE = "cong"  # the model that has embeddings and is in the package
_EVERY_MORPHEME = 1_000_000  # more than any vocabulary
_SKETCHED_PAIRS = 64  # cosines of neighbouring landmarks in the fingerprint
_SKETCH_SCALE = (
    100  # two digits of each: the same on processors that differ by 1e-7; the nearest to a border is 8e-5 off
)
_NORM_TOLERANCE = 1e-2  # of the recovered rows before normalising; measured 3e-4
_FILE_TENSOR = "vectors"

# Ids chosen once by pivoted Cholesky among 1,200 ids evenly spaced over 61 .. 70,487 (smaller ones are bare tags).
# In ascending order the smallest diagonal entry of the factor is .080 and noise of 1e-7 in A moves no entry by over 4e-5.
_LANDMARK_IDS = """
    61 119 178 237 295 354 413 472 530 589 648 707 765 824 883 942 1000 1059 1118 1177 1235 1294 1353 1411 1470
    1529 1588 1646 1705 1764 1823 1881 1940 1999 2058 2116 2175 2293 2351 2410 2469 2527 2586 2645 2704 2821 2880
    2939 2997 3115 3174 3232 3291 3350 3409 3467 3526 3585 3702 3761 3820 3878 3937 3996 4055 4113 4172 4231 4290
    4348 4407 4466 4525 4583 4642 4701 4759 4818 4877 4936 4994 5053 5112 5171 5229 5288 5347 5406 5464 5582 5641
    5699 5758 5817 5875 5934 5993 6052 6110 6169 6228 6287 6345 6404 6463 6522 6580 6639 6698 6757 6815 6874 6933
    6991 7050 7109 7168 7285 7344 7403 7461 7520 7638 7696 7755 7814 7873 7931 7990 8049 8225 8342 8401 8460 8577
    8636 8695 8871 8930 8989 9106 9165 9282 9341 9400 9458 9517 9576 9635 10046 10222 10281 10398 10457 10516
    10574 10751 10809 10868 10986 11044 11162 11221 11279 11338 11397 11456 11690 11749 11808 11867 11925 12102
    12160 12219 12513 12630 12689 12748 12865 12924 13218 13276 13335 13453 13511 13570 13629 13688 13746 13805
    13864 13922 14040 14157 14216 14275 14334 14392 14627 14745 14862 14980 15097 15215 15273 15450 15685 16037
    16155 16213 16272 16331 16566 16683 16977 17036 17212 17271 17447 17564 17682 17858 18269 18328 18680 18798
    18915 19444 19503 19679 19855 20031 20971 21265 21911 22557 23027 23379 24378 24436 24495 24554 25435 25905
    27961 29370 29664 30251 31250 31955 35479 37182 53335 58915 64202
"""
_LANDMARKS = np.array(_LANDMARK_IDS.split(), dtype=np.int64)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class MorphemeTable:
    """A vector for each morpheme id 0 .. V-1 of a Kiwi model: `vectors` is float32 (V, dim).

    `version` is the Kiwi model's; two tables of one `fingerprint` (64 hexadecimal digits) agree to 1e-4 in every entry.
    """

    vectors: FloatArray
    version: str
    fingerprint: str

    @classmethod
    def open(cls, kiwi: Kiwi, *, cache_dir: Path | None = None, progress: bool = False) -> MorphemeTable:
        """The derived table, from the cache where it is there and whole, else derived (some 8 s) and cached.

        `cache_dir` None is the user's cache folder. A file is memory-mapped, so processes share it; two of them may
        derive at the same time, the last one's file stays. A folder that cannot be written costs the 8 s each time.
        Raises InvalidSetting where Kiwi runs a model without embeddings.
        """
        check_model_type(kiwi)
        cached = cls.cached(cache_dir)
        if cached is not None:
            return cached
        table = derive_table(kiwi, progress=progress)
        path = _path(cache_dir)
        try:
            _write(path, table)
        except OSError as error:
            _log.warning(
                "the kiwi-static table cannot be cached in %s (%s): it is derived at every start", path.parent, error
            )
            return table
        return _read(path) or table

    @classmethod
    def cached(cls, cache_dir: Path | None = None) -> MorphemeTable | None:
        """The derived table from the cache, where it is there and whole."""
        return _read(_path(cache_dir))


def model_version() -> str:
    """Version of the installed Kiwi model."""
    return str(kiwipiepy_model.__version__)


def check_model_type(kiwi: Kiwi) -> None:
    """Raises InvalidSetting where Kiwi runs a model without embeddings."""
    if kiwi.model_type != _MODEL_TYPE:
        raise InvalidSetting(
            "encoder.model",
            "kiwi-static",
            f"a SentenceTransformer's name or folder where Kiwi runs its {kiwi.model_type!r} model "
            f"(kiwi-static reads the {_MODEL_TYPE!r} one)",
        )


def vocabulary_size(kiwi: Kiwi) -> int:
    """V: the morphemes that have an embedding, ids 0 .. V-1. The first call of a process takes 2 s."""
    check_model_type(kiwi)
    return len(kiwi.most_similar_morphemes(int(_LANDMARKS[0]), top_n=_EVERY_MORPHEME))


def derive_table(kiwi: Kiwi, *, progress: bool = False) -> MorphemeTable:
    """The table of `kiwi`, derived anew (some 8 s, one core).

    Raises InvalidSetting as `MorphemeTable.open`; EncoderFailed where the model is not of rank 256.
    """
    size = vocabulary_size(kiwi)
    if size <= _LANDMARKS.max():
        raise EncoderFailed(
            f"Kiwi's model {model_version()} has {size:,} morphemes, too few for kiwi-static",
            "pin kiwipiepy_model==0.24.0",
        )
    cosines = landmark_cosines(kiwi, size, progress=progress)
    content = ContentReader(kiwi, size).is_row
    vectors = without_common_directions(recovered_vectors(cosines), content).astype(np.float32)
    return MorphemeTable(vectors, model_version(), _fingerprint(kiwi, cosines))


def landmark_cosines(kiwi: Kiwi, size: int, *, progress: bool = False) -> NDArray[np.float64]:
    """A: cosines of the morphemes 0 .. size-1 with the landmarks, (size, 256)."""
    similarity = kiwi.morpheme_similarity
    cosines = np.empty((size, DIM))
    bar = tqdm(_LANDMARKS.tolist(), desc="kiwi-static table (once)", disable=None if progress else True)
    for column, landmark in enumerate(bar):
        cosines[:, column] = np.fromiter(map(similarity, repeat(landmark), range(size)), np.float64, size)
    return cosines


def recovered_vectors(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """E = A · chol(G)^-T, (V, 256): E · Eᵀ are Kiwi's cosines to 2e-6.

    Raises EncoderFailed where the cosines are not those of a table of rank 256.
    """
    gram = cosines[_LANDMARKS]
    try:
        factor = np.linalg.cholesky((gram + gram.T) / 2)
    except np.linalg.LinAlgError as error:
        raise _not_of_this_rank() from error
    vectors = np.linalg.solve(factor, cosines.T).T
    norms = np.linalg.norm(vectors, axis=1)
    if np.abs(norms - 1).max() > _NORM_TOLERANCE:
        raise _not_of_this_rank()
    return vectors


def without_common_directions(vectors: NDArray[np.float64], content: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`vectors` without the mean and the first principal components of the `content` rows, (V,) of which are true; unit rows.

    Independent of the components' signs.
    """
    centred = vectors - vectors[content].mean(axis=0)
    told = centred[content]
    _, directions = np.linalg.eigh(told.T @ told)  # ascending
    top = directions[:, -_REMOVED_COMPONENTS:]
    kept = centred - (centred @ top) @ top.T
    unit: NDArray[np.float64] = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    return unit


def _not_of_this_rank() -> EncoderFailed:
    return EncoderFailed(
        f"Kiwi's model {model_version()} is not the one that kiwi-static knows (its embeddings have another rank)",
        "pin kiwipiepy_model==0.24.0, or set encoder.model to a SentenceTransformer",
    )


def _path(cache_dir: Path | None) -> Path:
    folder = cache_dir if cache_dir is not None else Path(platformdirs.user_cache_dir("yeoul"))
    return folder / f"kiwi-static-{model_version()}-{_recipe_hash()[:8]}.safetensors"


def _recipe_hash() -> str:
    return hashlib.sha256(f"{_RECIPE} {_LANDMARKS.tolist()}".encode()).hexdigest()


def _fingerprint(kiwi: Kiwi, cosines: NDArray[np.float64]) -> str:
    """Hash of recipe, vocabulary and a coarse sketch of the cosines.

    Not of the table's bytes: they differ in the last digits between processors, and an index made on one machine must
    open on another.
    """
    digest = hashlib.sha256(_recipe_hash().encode())
    for morpheme in map(kiwi.morpheme, range(len(cosines))):
        digest.update(f"{morpheme.form}\t{morpheme.tag}\n".encode())
    neighbours = cosines[_LANDMARKS[:_SKETCHED_PAIRS], np.arange(1, _SKETCHED_PAIRS + 1)]
    digest.update(np.rint(neighbours * _SKETCH_SCALE).astype("<i8").tobytes())
    return digest.hexdigest()


def mapped(path: Path, name: str) -> tuple[FloatArray, str]:
    """The float32 tensor `name`, the last one of a file of safetensors, which copies where numpy maps; and its SHA-256, read
    beside the map, so that a process has only what it uses in its memory. Raises OSError, KeyError, ValueError."""
    with path.open("rb") as raw:  # a length, so many bytes of JSON, the tensors
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(length))[name]
        begin, end = header["data_offsets"]
        raw.seek(8 + length + begin)
        content = hashlib.file_digest(raw, "sha256").hexdigest()
        if header["dtype"] != "F32" or raw.tell() != 8 + length + end:
            raise ValueError(f"{name} of {path} is no last tensor of F32: {header}")
    vectors = np.memmap(path, dtype=np.float32, mode="r", offset=8 + length + begin, shape=tuple(header["shape"]))
    return vectors, content


def _content_hash(vectors: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()


def _write(path: Path, table: MorphemeTable) -> None:
    """Writes atomically: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        metadata = {"version": table.version, "fingerprint": table.fingerprint, "sha256": _content_hash(table.vectors)}
        save_file({_FILE_TENSOR: table.vectors}, temporary, metadata=metadata)
        temporary.replace(path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> MorphemeTable | None:
    """The table in `path`, memory-mapped; None where the file is missing, damaged or of another kind."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        vectors, content_hash = mapped(path, _FILE_TENSOR)
        if content_hash != metadata["sha256"]:
            return None
        return MorphemeTable(vectors, metadata["version"], metadata["fingerprint"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None  # it is only a cache: derive anew
