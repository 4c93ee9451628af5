"""What a bulk load asks of Python's collector, and of the C library afterwards. Knows nothing of what is loaded."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_COLLECTED_AFTER = 1_000_000  # new objects: some batches of passages, none of which is garbage in a circle


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within the block Python's collector looks seldom; it would look at every passage on its way, for a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _COLLECTED_AFTER), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def give_back() -> None:
    """Gives memory that was freed back to the system, where the C library would keep it for later, some milliseconds of work
    without the interpreter's lock. Nothing happens where that is not glibc."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
