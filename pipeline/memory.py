"""Python's garbage collector in a process that stays and while it loads, and what the C library keeps of what was freed. Knows
nothing of what is in memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# New objects that the collector looks through at a time: an answer is made of some thousand, and by default every third one
# would be interrupted; a bulk load makes millions, none of which is garbage in a circle.
_COLLECTED_AFTER, _LOAD_COLLECTED_AFTER = 100_000, 1_000_000


def collect_seldom() -> None:
    """For a process that stays, before its imports: looking through what is imported is a tenth of its start."""
    gc.set_threshold(_COLLECTED_AFTER)


def keep_for_good() -> None:
    """Takes what the libraries made out of the sight of the collector, which would look through 180,000 objects again and again
    and hold up every search for .2 s each time. Before a collection is open: that one may be retired."""
    gc.collect()
    gc.freeze()
    collect_seldom()


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within the block the collector looks seldom; it would look at every passage on its way, for a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _LOAD_COLLECTED_AFTER), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def give_back() -> None:
    """Gives memory that was freed back to the system, where the C library would keep it for later, some milliseconds of work
    without the interpreter's lock. Nothing happens where that is not glibc."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
