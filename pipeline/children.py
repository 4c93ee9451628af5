"""Processes that this one starts from a module of its own, wherever that is installed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

log = logging.getLogger(__name__)

_NICEST = 19
_STARVED_SECONDS = 60.0  # of waiting for a processor, and of less than a twentieth of that having had one
_NOTHING: Mapping[str, str] = MappingProxyType({})
_HERE = str(Path(__file__).resolve().parent.parent)


def started(
    module: str, *arguments: str, environment: Mapping[str, str] = _NOTHING, **how: Any
) -> subprocess.Popen[bytes]:
    """`python -m module arguments`, whatever lies in the working directory, with `environment` where this process's says
    nothing; `how` as `subprocess.Popen` takes it."""
    found = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**environment, **os.environ, "PYTHONPATH": found},
        **how,
    )


def step_back(process: subprocess.Popen[bytes]) -> None:
    """From now on the process takes the processor only where nobody else wants it. A nice process is less than that: searches
    that wake up queue behind each other while it runs. It may starve, so nobody should wait for long for what it holds."""
    if sys.platform == "linux":
        try:
            for thread in _threads(process):
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:  # a container may forbid it
            log.warning("no idle scheduling (%s): nice instead", error)
        else:
            return
    be_nice(process, _NICEST)


def be_nice(process: subprocess.Popen[bytes], niceness: int) -> None:
    """From now on others get more of the processor, the more the higher `niceness` (0 to 19) is."""
    for thread in _threads(process):
        with suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _threads(process: subprocess.Popen[bytes]) -> list[int]:
    """On Linux each has a priority of its own, which those that it starts get too."""
    try:
        return [int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir()]
    except OSError:  # another system, or it has ended
        return [process.pid]


def starves(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has waited for a processor for a minute and got next to nothing; False where the system does not tell.

    Source: the kernel's Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat": nanoseconds of the first thread on a
    processor, and waiting for one.
    """
    try:
        ran, waited, _ = map(int, Path(f"/proc/{process.pid}/schedstat").read_text().split())
    except (OSError, ValueError):
        return False
    return waited > max(_STARVED_SECONDS * 1e9, 20 * ran)


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
