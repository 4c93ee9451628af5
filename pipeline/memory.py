"""Memory that was freed and that the C library keeps for later: after a start, hundreds of megabytes that nobody asks for again."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Gives it back to the system: some milliseconds of work without the interpreter's lock. Nothing happens where the C
    library is not glibc."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
