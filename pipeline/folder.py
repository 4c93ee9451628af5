"""Who holds the data folder: Milvus Lite belongs to one process, and the next one is told to whom. Processes that share a folder
beside a Milvus server take turns at what one of them can do for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from pipeline.errors import FolderInUse, InvalidSetting

_LOCK = "lock"
_HOLDER = "holder.json"
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a folder; `url` where it serves HTTP."""

    pid: int
    command: str
    url: str = ""

    @classmethod
    def this(cls, command: str, url: str = "") -> Holder:
        """This process."""
        return cls(os.getpid(), command, url)

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid}{', ' + self.url if self.url else ''})"


class FolderLock:
    """A data folder, held by this process until `release` or its end."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self._folder = folder
        self._lock = lock

    @classmethod
    def take(cls, folder: Path, command: str) -> FolderLock:
        """Makes the folder where it is missing and takes it.

        Raises FolderInUse naming the holder, InvalidSetting where the folder cannot be written.
        """
        # Not by thread: a server takes it in one thread and gives it back in another.
        lock = FileLock(folder / _LOCK, blocking=False, thread_local=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            taken = cls(folder, lock)
            taken.announce(Holder.this(command))
        except Timeout as error:
            raise FolderInUse(str(folder), str(holder_of(folder) or "another process")) from error
        except OSError as error:
            raise InvalidSetting("data_dir", str(folder), f"a folder that can be written ({error})") from error
        return taken

    def announce(self, holder: Holder) -> None:
        """Writes down who holds the folder, for those who find it taken."""
        temporary = self._folder / f"{_HOLDER}.{os.getpid()}"
        temporary.write_bytes(orjson.dumps(asdict(holder)))
        temporary.replace(self._folder / _HOLDER)

    def release(self) -> None:
        """May be called twice."""
        if self._lock.is_locked:
            (self._folder / _HOLDER).unlink(missing_ok=True)
            self._lock.release()


def holder_of(folder: Path) -> Holder | None:
    """Who says to hold `folder`; believe it only where the folder cannot be taken."""
    try:
        return Holder(**orjson.loads((folder / _HOLDER).read_bytes()))
    except (OSError, TypeError, orjson.JSONDecodeError):
        return None


@contextmanager
def turn(folder: Path, what: str, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Waits until nobody else on this machine is at `what` with this folder; `meanwhile` is called now and then, and may raise.

    A folder that cannot be written is nobody's: there is no turn to wait for.
    """
    lock = FileLock(folder / f"{what}.lock", timeout=_LOOK_SECONDS, thread_local=False)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire()
            except Timeout:
                meanwhile()
    try:
        yield
    finally:
        lock.release()
