"""The folder of Milvus Lite: who holds it, and how many users it has in this process. Knows nothing about collections.

Milvus Lite runs as threads inside the first process that opens a folder; a second process is refused with nothing but
"Open local milvus failed". Here the holder is named, and the folder is given back when its last user here closes.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from pathlib import Path

from pipeline.errors import FolderInUse, StoreUnavailable

# Milvus Lite takes one writer at a time for a collection; all its folders share this lock, as one folder is the rule.
WRITING = threading.RLock()

UNUSABLE = "check that milvus.uri names a folder that can be written and that the disk is not full"

_LOCK_FILE = "LOCK"  # the file inside the folder that Milvus Lite locks (flock)
_KERNEL_LOCKS = Path("/proc/locks")  # Linux: who holds which lock
_counting = threading.Lock()
_users: Counter[Path] = Counter()


def folder_of(uri: str) -> Path | None:
    """The folder that `uri` names, absolute; None where `uri` is the address of a server."""
    return Path(uri).absolute() if uri.endswith(".db") else None


def take(folder: Path) -> None:
    """Counts one more user of `folder` in this process.

    Raises FolderInUse where another process holds it, StoreUnavailable where it cannot be made or is no folder.
    """
    with _counting:
        if not _users[folder]:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable("collection", str(folder), str(error), UNUSABLE) from error
            refuse_where_held(folder)
        _users[folder] += 1


def give_back(folder: Path) -> None:
    """Counts one user less; after the last one everything is written to disk and other processes can open `folder`."""
    from milvus_lite.server_manager import server_manager_instance  # noqa: PLC0415 (servers do without it)

    with _counting:
        _users[folder] -= 1
        if not _users[folder]:
            del _users[folder]
            server_manager_instance.release_server(str(folder))


def refuse_where_held(folder: Path) -> None:
    """Raises FolderInUse where a process holds the lock of `folder`."""
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUse(str(folder), _holder(os.fstat(descriptor).st_ino)) from error
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
