"""The processes beside one that answers searches, and the data folder that they work in. They take seconds to start, so this
module imports little: they are under way while the rest is imported.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.folder import FolderLock
from pipeline.index import lite
from pipeline.reading import ReadingProcess

if TYPE_CHECKING:
    from pipeline.settings import Settings


class Processes:
    """Milvus Lite and what reads texts, starting; either is None where the settings need none."""

    def __init__(self, lock: FolderLock | None, reading: ReadingProcess | None, ends: ExitStack) -> None:
        self.lock = lock
        self.reading = reading
        self._ends = ends

    @classmethod
    def start(cls, settings: Settings, command: str) -> Processes:
        """Takes the data folder, where Milvus Lite is in it, for `command`, and starts them.

        Raises FolderInUse where it belongs to another process, InvalidSetting for a dictionary that cannot be read.
        """
        folder, lock = lite.folder_of(settings.milvus_uri), None
        with ExitStack() as if_it_fails:
            if folder is not None:
                lock = FolderLock.take(settings.data_dir, command)
                if_it_fails.callback(lock.release)
                if_it_fails.enter_context(lite.apart(folder))
            reading = ReadingProcess.started(settings)
            if reading is not None:
                if_it_fails.callback(reading.close)
            return cls(lock, reading, if_it_fails.pop_all())

    def close(self) -> None:
        """Ends them, everything written to disk, and gives the folder back. May be called twice."""
        self._ends.close()
