"""`yeoul` as a person runs it: real processes in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase

_ROOT = Path(__file__).parent.parent
_SECONDS = 600.0  # for one command: some 5 s on an idle machine


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.out)
        return answer

    def told(self) -> str:
        """The error, after checking that it is one: exit code 1, nothing on stdout, one line on stderr, no traceback."""
        assert self.code == 1, self
        assert self.out == "", self
        assert "Traceback" not in self.err, self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("yeoul: ")
        return lines[0]

    def done(self) -> Outcome:
        """Itself, after checking that all went well and nothing was complained about."""
        assert (self.code, self.err) == (0, ""), self
        return self


@dataclass(frozen=True)
class Shell:
    """Where commands run: `folder` holds their `.yeoul`, `environment` their settings."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, *arguments: str | bytes, **settings: str) -> subprocess.Popen[bytes]:
        """A running command. `settings` are names without YEOUL_, such as MILVUS__URI; those in lower case are no settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("YEOUL_")}
        given = {f"YEOUL_{name}" if name.isupper() else name: value for name, value in settings.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "yeoul", *arguments],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(_ROOT), "PYTHONUTF8": "1", **self.environment, **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str | bytes, **settings: str) -> Outcome:
        return finished(self.start(*arguments, **settings))


def finished(process: subprocess.Popen[bytes]) -> Outcome:
    """Waits for the end of `process`."""
    out, err = process.communicate(timeout=_SECONDS)
    return Outcome(process.returncode, out.decode(), err.decode())


def counts(shell: Shell) -> tuple[dict[str, int], int]:
    """Articles by status and the length of the inbox, straight from the state database."""
    database = StateDatabase.open(f"sqlite:///{shell.folder / '.yeoul' / 'state.db'}")
    store = ArticleStore(database)
    found = store.counts(), store.queue_length()
    database.close()
    return found
