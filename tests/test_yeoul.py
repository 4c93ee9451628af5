"""yeoul.py where it needs more than a folder: a terminal for its progress bars, a data set to evaluate."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.command_line import Shell

_ROOT = Path(__file__).parent.parent
_ARTICLES = [
    {"id": "phishing", "title": "보이스피싱 대처", "body": "보이스피싱을 당했다면 112에 지급정지를 요청합니다."},
    {"id": "rent", "title": "월세 세액공제", "body": "연말정산에서 월세 세액공제를 받으려면 무주택 세대주여야 합니다."},
]
_MEASURES = {"ndcg@10", "recall@1", "recall@10", "recall@100", "mrr@10"}
_SECONDS = 600


@pytest.fixture
def shell(tmp_path: Path, pytestconfig: pytest.Config) -> Shell:
    """A folder in which nothing was ever indexed; kiwi-static's table is derived once a checkout."""
    cache = pytestconfig.cache
    assert cache is not None
    return Shell(
        tmp_path,
        {
            "YEOUL_ENCODER__CACHE_DIR": str(cache.mkdir("kiwi-static")),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),  # where evaluations keep tokens and vectors
        },
    )


def _jsonl(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _on_a_terminal(shell: Shell, *arguments: str) -> tuple[str, str]:
    """(stdout, what the terminal on stderr showed) of a command that succeeds."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # a new one has no width, and a bar none either
    try:
        running = subprocess.Popen(
            [sys.executable, "-m", "yeoul", *arguments],
            cwd=shell.folder,
            env={**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONUTF8": "1", **shell.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        out, _ = running.communicate(timeout=_SECONDS)
    finally:
        os.close(ours)
    assert running.returncode == 0, shown
    return out.decode(), shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says EIO where the other side has closed the terminal
        return b""


def test_a_progress_bar_is_shown_on_a_terminal_alone(shell: Shell) -> None:
    file = str(_jsonl(shell.folder / "articles.jsonl", *_ARTICLES))
    out, shown = _on_a_terminal(shell, "index", file)
    assert "2 articles indexed" in out
    for bar in ("reading: 2 articles", "indexing: 100%"):
        assert bar in shown
    _jsonl(shell.folder / "articles.jsonl", *({**article, "category": "새"} for article in _ARTICLES))
    quiet = shell.run("index", file).done()  # nothing on stderr
    assert "2 articles indexed" in quiet.out


def test_eval_writes_the_object_of_the_contract_and_touches_no_index(shell: Shell) -> None:
    data = shell.folder / "money"
    (data / "qrels").mkdir(parents=True)
    _jsonl(data / "corpus.jsonl", *({"_id": a["id"], "title": a["title"], "text": a["body"]} for a in _ARTICLES))
    _jsonl(data / "queries.jsonl", {"_id": "q1", "text": "월세 공제"}, {"_id": "q2", "text": "보이스피싱 신고"})
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\trent\t1\nq2\tphishing\t1\n")
    outcome = shell.run("eval", str(data), "--json", "figures.json").done()
    assert "| hybrid | 1.0000 |" in outcome.out
    figures = json.loads((shell.folder / "figures.json").read_bytes())
    assert (figures["dataset"], figures["queries"], figures["passages"]) == ("money", 2, 2)
    assert figures["manifest"]["encoder"].startswith("kiwi-static:")
    assert list(figures["modes"]) == ["lexical", "dense", "rrf", "hybrid"]
    assert all(set(values) == _MEASURES for values in figures["modes"].values())
    assert figures["modes"]["hybrid"]["recall@1"] == 1
    assert not (shell.folder / ".yeoul").exists()


def test_eval_of_a_folder_without_a_data_set_is_told(shell: Shell) -> None:
    assert "corpus.jsonl" in shell.run("eval", str(shell.folder)).told()
