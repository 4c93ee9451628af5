"""Who holds the data folder: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import FolderInUse, InvalidSetting
from pipeline.folder import FolderLock, Holder, holder_of

_HOLDS = """
import sys
from pathlib import Path
from pipeline.folder import FolderLock, Holder
lock = FolderLock.take(Path(sys.argv[1]), "yeoul serve")
lock.announce(Holder.this("yeoul serve", "http://127.0.0.1:8200"))
print("held", flush=True)
sys.stdin.read()
"""

Start = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def holding_process() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_holds_the_folder_and_the_cure(tmp_path: Path, holding_process: Start) -> None:
    holder = holding_process(tmp_path)
    with pytest.raises(FolderInUse) as caught:
        FolderLock.take(tmp_path, "yeoul index")
    assert caught.value.holder == f"yeoul serve (process {holder.pid}, http://127.0.0.1:8200)"
    assert str(tmp_path) in caught.value.message
    assert "stop that one" in caught.value.hint
    assert holder_of(tmp_path) == Holder(holder.pid, "yeoul serve", "http://127.0.0.1:8200")


def test_a_killed_process_holds_nothing(tmp_path: Path, holding_process: Start) -> None:
    holder = holding_process(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = FolderLock.take(tmp_path, "yeoul index")
    assert holder_of(tmp_path) == Holder(os.getpid(), "yeoul index")
    lock.release()


def test_a_released_folder_can_be_taken_again_and_names_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    for _ in range(2):
        lock = FolderLock.take(folder, "yeoul index")
        with pytest.raises(FolderInUse, match="yeoul index"):
            FolderLock.take(folder, "yeoul serve")
        lock.release()
        lock.release()
        assert holder_of(folder) is None


def test_another_thread_can_release(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path, "yeoul serve")
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    FolderLock.take(tmp_path, "yeoul index").release()


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b'{"pid": 1}', b'{"pid":1,"command":"x","more":2}', b"\xff", b"null"]
)
def test_a_holder_that_cannot_be_read_is_nobody_and_the_folder_is_still_held(tmp_path: Path, content: bytes) -> None:
    lock = FolderLock.take(tmp_path, "yeoul serve")
    (tmp_path / "holder.json").write_bytes(content)
    assert holder_of(tmp_path) is None
    with pytest.raises(FolderInUse, match="in use by another process"):
        FolderLock.take(tmp_path, "yeoul index")
    lock.release()


def test_a_data_dir_that_is_a_file_is_a_bad_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidSetting, match="'data_dir' should be a folder that can be written"):
        FolderLock.take(tmp_path / "file", "yeoul index")
