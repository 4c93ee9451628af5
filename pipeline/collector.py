"""Python's garbage collector in a process that stays."""

from __future__ import annotations

import gc

_COLLECTED_AFTER = 100_000  # new objects that Python's collector looks through at a time


def keep_for_good() -> None:
    """Takes what the libraries made out of the sight of Python's collector, which would look through 180,000 objects again and
    again and hold up every search for .2 s each time. Before a collection is open: that one may be retired."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(
        _COLLECTED_AFTER
    )  # an answer is made of some thousand objects: by default every third one is interrupted
