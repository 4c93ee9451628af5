"""A resident engine on disk, so that the next start reads it in a second instead of building it from the collection.

A snapshot says which collection it was taken of and up to which position of the change log; it is used only where both
still hold, and the log brings it up to date. It is a copy: losing it costs time, never data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.index import packing
from pipeline.index.resident import ResidentEngine

log = logging.getLogger(__name__)

_FORMAT = [3, packing.FORMAT]  # raise the first with every change of the arrays that `ResidentEngine.state` gives
_HEADER = "yeoul"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its history an engine stands.

    The collection's identity, the position in the change log, what identifies that line of it, and the settled seq.
    """

    collection: str
    position: int
    mark: str
    seq: int


def save(engine: ResidentEngine, path: Path, place: Place) -> None:
    """Writes the engine to `path`, atomically. Raises OSError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        header = {_HEADER: orjson.dumps({"format": _FORMAT, **asdict(place)}).decode()}
        save_file(engine.state(), temporary, metadata=header)
        temporary.replace(path)
    except SafetensorError as error:  # a full disk comes as this too
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def restore(engine: ResidentEngine, path: Path, fits: Callable[[Place], bool]) -> Place | None:
    """Fills the empty `engine` from `path`; None, and nothing done, where there is no snapshot that `fits`."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = orjson.loads((file.metadata() or {}).get(_HEADER, "{}"))
            if header.pop("format", None) != _FORMAT or not fits(place := Place(**header)):
                return None
            engine.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - it is no mapping
            return place
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the snapshot %s cannot be read (%s): the index is loaded from the collection", path, error)
        return None
