"""pipeline/memory.py"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from pipeline import memory

_STATUS = Path("/proc/self/statm")
_PAGE = 4096
_BLOCKS, _BYTES = 100_000, 1_000  # 100 MB; Python keeps smaller objects itself


def resident() -> int:
    """Bytes of this process in memory."""
    return int(_STATUS.read_text().split()[1]) * _PAGE


@pytest.mark.skipif(sys.platform != "linux" or not _STATUS.exists(), reason="the C library of Linux is asked")
def test_what_lies_free_between_blocks_in_use_goes_back_to_the_system() -> None:
    blocks = [bytes(_BYTES) for _ in range(_BLOCKS)]
    last = bytes(_BYTES)  # in use, behind all of them
    del blocks
    before = resident()
    memory.give_back()
    assert before - resident() > _BLOCKS * _BYTES // 2
    assert last


def test_the_collector_is_as_before_after_a_bulk_load() -> None:
    before = gc.get_threshold()
    with memory.seldom_collected():
        assert gc.get_threshold()[0] > 100_000
    assert gc.get_threshold() == before
