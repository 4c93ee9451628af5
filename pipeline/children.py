"""Processes that this one starts from a module of its own, wherever that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).resolve().parent.parent)


def started(module: str, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    """`python -m module arguments`, whatever lies in the working directory; `how` as `subprocess.Popen` takes it."""
    found = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments], env=os.environ | {"PYTHONPATH": found}, **how
    )


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
