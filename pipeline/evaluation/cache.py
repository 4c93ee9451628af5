"""Arrays kept between evaluations, because Kiwi reads a quarter of a million characters a second and a corpus has 40.

One file of plain arrays a key (`.npz`: checksummed, no pickle). It is only a cache: a file that is damaged, or that does not
say the key it is asked for, is as good as missing, and the folder may be deleted at any time. Knows nothing of what it keeps.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import orjson
import platformdirs
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_LABEL = "label"  # the array with the JSON of the key and of the other arrays' names
_NAME_CHARS = 32  # of the key's SHA-256, in hexadecimal: 128 bits
# What zipfile and numpy raise for bytes that are not a whole archive (RuntimeError: of a kind that nobody writes).
_DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)

Arrays = Mapping[str, NDArray[np.generic]]
Key = Mapping[str, object]  # JSON values: everything that the arrays depend on


def default_folder() -> Path:
    """Where evaluations keep tokens and vectors unless told otherwise: `eval` in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("yeoul")) / "eval"


class ArrayCache:
    """Named arrays by key, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: Key) -> Path:
        """The file of `key`, there or not."""
        return self._folder / f"{hashlib.sha256(_json(key)).hexdigest()[:_NAME_CHARS]}.npz"

    def load(self, key: Key) -> dict[str, NDArray[np.generic]] | None:
        """What was stored under `key`; None where nothing was, or nothing whole is left."""
        path = self.path(key)
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except _DAMAGED as error:
            log.warning("the evaluation cache %s is damaged (%s): made anew", path, error)
            return None
        label = arrays.pop(_LABEL, np.zeros(0, dtype=np.uint8))
        if label.tobytes() != _label(key, arrays):
            log.warning("the evaluation cache %s belongs to another corpus or encoder: made anew", path)
            return None
        return arrays

    def store(self, key: Key, arrays: Arrays) -> None:
        """Keeps `arrays` under `key`, at once or not at all; where the disk refuses, says so and goes on without."""
        path = self.path(key)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                label = np.frombuffer(_label(key, arrays), dtype=np.uint8)
                np.savez(file, allow_pickle=False, **{**arrays, _LABEL: label})
            temporary.replace(path)
        except OSError as error:
            log.warning("tokens and vectors cannot be cached in %s (%s): they are made anew each time", path, error)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _json(key: Key) -> bytes:
    return orjson.dumps(key, option=orjson.OPT_SORT_KEYS)


def _label(key: Key, arrays: Arrays) -> bytes:
    return _json({"key": key, "arrays": sorted(arrays)})
