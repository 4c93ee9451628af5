"""The folder of Milvus Lite: who holds it, and how many users it has in this process. Knows nothing about collections.

Milvus Lite runs as threads inside the first process that opens a folder, or, `apart`, in a process of its own that this one
starts; a second process is refused with nothing but "Open local milvus failed". Here the holder is named, and the folder is
given back when its last user here closes, or at the end of `apart`. A second process may use what the first one has `apart`,
`beside` it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pipeline.errors import FolderInUse, StoreUnavailable
from pipeline.index.lite_process import UNUSABLE, LiteProcess

# Milvus Lite takes one writer at a time for a collection, and a read that begins before it flushes what is in its memory and goes
# on after that misses all of it: who uses it here takes turns (a process of its own answers one request at a time). All folders
# share this lock, as one folder is the rule.
_TURN = threading.RLock()

_LOCK_FILE = "LOCK"  # the file inside the folder that Milvus Lite locks (flock)
_LET_GO_SECONDS = 1.0  # for a process of `apart` to end after the one that started it
_LOOK_SECONDS = 0.02
_KERNEL_LOCKS = Path("/proc/locks")  # Linux: who holds which lock
_counting = threading.Lock()
_users: Counter[Path] = Counter()
_apart: dict[Path, LiteProcess | _Neighbours] = {}


class _Neighbours:
    """Milvus Lite in a process that another one started."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._address = address

    def address(self) -> str:
        return self._address

    def away(self, why: str) -> StoreUnavailable:
        """The error of a call that failed for `why`."""
        return StoreUnavailable("collection", str(self._folder), why, "is the process that serves still there?")


def folder_of(uri: str) -> Path | None:
    """The folder that `uri` names, absolute; None where `uri` is the address of a server."""
    return Path(uri).absolute() if uri.endswith(".db") else None


@contextmanager
def apart(folder: Path) -> Iterator[LiteProcess]:
    """Within the block Milvus Lite runs in a process of its own for `folder`, which nobody here uses yet."""
    process = _apart[folder] = LiteProcess(folder)
    try:
        yield process
    finally:
        process.stop()
        del _apart[folder]


@contextmanager
def beside(folder: Path, address: str) -> Iterator[None]:
    """Within the block `folder` is used at the `address` that the process has which holds it `apart`."""
    _apart[folder] = _Neighbours(folder, address)
    try:
        yield
    finally:
        del _apart[folder]


def address_of(uri: str) -> str:
    """Where to connect for `uri`: to the process of its own where there is one. Raises StoreUnavailable where that does not
    answer."""
    process = _process_of(uri)
    return process.address() if process is not None else uri


def unavailable(uri: str, why: str) -> StoreUnavailable:
    """The error of a call to the store at `uri`, which is Milvus Lite's."""
    process = _process_of(uri)
    return process.away(why) if process is not None else StoreUnavailable("collection", uri, why, UNUSABLE)


def _process_of(uri: str) -> LiteProcess | _Neighbours | None:
    folder = folder_of(uri)
    return _apart.get(folder) if folder is not None else None


def turn(folder: Path) -> AbstractContextManager[object]:
    """What a call to Milvus Lite stands in."""
    return _TURN if folder not in _apart else nullcontext()


def take(folder: Path) -> None:
    """Counts one more user of `folder` in this process.

    Raises FolderInUse where another process holds it, StoreUnavailable where it cannot be made or is no folder.
    """
    with _counting:
        if not _users[folder] and folder not in _apart:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable("collection", str(folder), str(error), UNUSABLE) from error
            refuse_where_held(folder)
        _users[folder] += 1


def give_back(folder: Path) -> None:
    """Counts one user less; after the last one everything is written to disk and other processes can open `folder`, unless it
    is `apart`."""
    with _counting:
        _users[folder] -= 1
        if not _users[folder]:
            del _users[folder]
            if folder not in _apart:
                from milvus_lite.server_manager import server_manager_instance  # noqa: PLC0415 (others do without it)

                server_manager_instance.release_server(str(folder))


def refuse_where_held(folder: Path) -> None:
    """Raises FolderInUse where a process that is not ours holds the lock of `folder`; one that is just ending is waited for."""
    if folder in _apart:
        return
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return
    deadline = time.monotonic() + _LET_GO_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise FolderInUse(str(folder), _holder(os.fstat(descriptor).st_ino)) from error
                time.sleep(_LOOK_SECONDS)
            else:
                return
    finally:
        os.close(descriptor)


def _holder(inode: int) -> str:
    """`process 1234` where the kernel tells it."""
    try:
        locks = _KERNEL_LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return "another process"
    for lock in locks:  # such as "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF"
        parts = lock.split()
        if "FLOCK" in parts and "->" not in parts and parts[5].endswith(f":{inode}"):
            return f"process {parts[4]}"
    return "another process"
