"""Work that takes the processor only where nobody else wants it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)

_NICEST = 19


def step_back(process: int | None = None) -> None:
    """For all of a process (this one, or a child by its number), and for good. A nice process is less than that: searches
    that wake up queue behind each other while it runs. It may starve, so nobody should wait for long for what it holds."""
    process = process or os.getpid()
    if sys.platform == "linux":
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:  # a container may forbid it
            log.warning("no idle scheduling (%s): nice instead", error)
        else:
            return
    os.setpriority(os.PRIO_PROCESS, process, _NICEST)
