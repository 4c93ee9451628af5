"""The closed loop: `wrk`, which keeps so many connections busy and costs the processors next to nothing.

A request begins when the one before it on its connection is answered, so that a server that stalls is asked less; what it does
at a steady rate is `load.py`'s business. Knows nothing of searches.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from pipeline.errors import YeoulError

_SCRIPT = Path(__file__).with_name("walk.lua")
_THREADS = 2  # of wrk: each asks for every second path
_TIMEOUT = 30  # seconds until wrk counts a request as timed out
_GRACE = 60.0  # seconds that wrk may take beyond its time
_OK = "200"


class NoWrk(YeoulError):
    """wrk is not there, or did not do its work."""

    code = "no_wrk"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """What came of a run. Milliseconds; `percentiles` are the 1st to the 99th; `outcomes`: statuses and kinds of errors → how
    many requests."""

    requests: int
    seconds: float
    percentiles: tuple[float, ...]
    worst: float
    outcomes: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return self.outcomes.get(_OK, 0) / self.seconds


def check_wrk() -> None:
    """Raises NoWrk."""
    if shutil.which("wrk") is None:
        raise NoWrk("there is no wrk, which asks in a closed loop", "apt-get install wrk")


def closed_loop(
    url: str, lines: Sequence[str], *, connections: int, seconds: float, first: int = 0, post_to: str = ""
) -> ClosedLoop:
    """So many connections, each of which asks for the next of `lines` as soon as it is answered, from number `first` on and
    at their end from the beginning. They are paths or, with `post_to`, JSON that is posted there. `seconds` are whole ones.
    Raises NoWrk."""
    check_wrk()
    threads = min(_THREADS, connections)
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as file:
        file.write("\n".join(lines))
        file.flush()
        command = [
            "wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={_TIMEOUT}s",
            "-s", str(_SCRIPT), url, "--", file.name, str(first), str(threads),
            *filter(None, [post_to]),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _GRACE)
    if done.returncode:
        raise NoWrk(f"wrk ended with {done.returncode}: {(done.stderr or done.stdout).strip()}", "see what it says")
    found = orjson.loads(done.stdout.splitlines()[-1])
    errors = {name: count for name, count in found["errors"].items() if count and name != "status"}
    return ClosedLoop(
        requests=found["requests"],
        seconds=found["seconds"],
        percentiles=tuple(found["percentiles"]),
        worst=found["worst"],
        outcomes=found["statuses"] | errors,
    )
