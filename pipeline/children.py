"""Processes that this one starts from a module of its own, wherever that is installed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_NICEST = 19
_HERE = str(Path(__file__).resolve().parent.parent)


def started(module: str, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    """`python -m module arguments`, whatever lies in the working directory; `how` as `subprocess.Popen` takes it."""
    found = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments], env=os.environ | {"PYTHONPATH": found}, **how
    )


def step_back(process: subprocess.Popen[bytes]) -> None:
    """From now on the process takes the processor only where nobody else wants it. A nice process is less than that: searches
    that wake up queue behind each other while it runs. It may starve, so nobody should wait for long for what it holds."""
    if sys.platform == "linux":
        try:
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:  # a container may forbid it
            log.warning("no idle scheduling (%s): nice instead", error)
        else:
            return
    with suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICEST)


def stopped(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends the process, by force where it has not ended after `seconds`."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
