"""What a process and its children hold in memory, and what time it had, as Linux tells it in /proc; NaN where there is none."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PROC = Path("/proc")
_LOOK_SECONDS = 0.2
_KB_PER_MB = 1000 / 1.024  # the kernel's kB are 1,024 bytes, our MB a million


@dataclass(frozen=True, slots=True)
class Memory:
    """MB. `rss` counts what processes share once for each of them, `pss` once in all."""

    rss: float
    pss: float


def memory_of(pid: int) -> Memory:
    """Of the process and everything it started. Costs it some milliseconds."""
    kilobytes: dict[str, int] = defaultdict(int)
    for one in _family(pid):
        with suppress(OSError):  # it has just ended
            for line in (_PROC / str(one) / "smaps_rollup").read_text().splitlines()[1:]:
                name, amount, *_ = line.split()
                kilobytes[name] += int(amount)
    if not kilobytes:
        return Memory(float("nan"), float("nan"))
    return Memory(kilobytes["Rss:"] / _KB_PER_MB, kilobytes["Pss:"] / _KB_PER_MB)


def rss_of(pid: int) -> float:
    """MB of the process and everything it started, at next to no cost."""
    found = [amount for one in _family(pid) if (amount := _rss(one)) is not None]
    return sum(found) / _KB_PER_MB if found else float("nan")


def processor_seconds(pid: int) -> float:
    """Of the processors, for the process alone, all its threads together."""
    try:
        after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    user, system = after_name[11:13]  # proc(5): fields 14 and 15
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Peak:
    """The most that was seen, in MB; NaN before anything was."""

    rss: float = float("nan")


@contextmanager
def watched(pid: int) -> Iterator[Peak]:
    """The most that the process and its children hold while the block runs, by a look every fifth of a second."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while True:
            peak.rss = float(np.fmax(peak.rss, rss_of(pid)))  # the one that is a number, where one is
            if ended.wait(_LOOK_SECONDS):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _rss(pid: int) -> int | None:
    """kB of 1,024 bytes."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return None


def _family(pid: int) -> list[int]:
    """The process and all of its descendants."""
    children = defaultdict(list)
    for status in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = status.read_text().rpartition(")")[2].split()[1]  # the name before it may hold blanks
            children[int(parent)].append(int(status.parent.name))
    found, new = [pid], [pid]
    while new:
        new = [child for one in new for child in children[one]]
        found += new
    return found
