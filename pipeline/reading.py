"""Kiwi and kiwi-static in a process of their own, for a process that answers searches.

Understanding a query is a third of a search, and making passages nearly all of a publication: here they share neither the
interpreter nor the start with what answers. The process ends with the one that started it; one that dies is started again by
who asks next. Knows nothing of stores and engines.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.children import started, stopped
from pipeline.documents import Article
from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.kiwi_static import KiwiStaticEncoder, WeightedTable
from pipeline.encoding.opening import open_encoder, reads_morphemes
from pipeline.errors import EncoderFailed, NotReady, Unavailable
from pipeline.korean.morphemes import Analyser, fingerprint_with
from pipeline.korean.synonyms import with_own
from pipeline.memory import give_back, keep_for_good
from pipeline.passages import AnalysedPassage, ChunkingParameters, Passages
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.understanding import QueryReader, Understood

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0  # between two starts
_STOP_SECONDS = 5.0
_TRIES = 2  # what one process died of is given to one more


class _Line(IntEnum):
    """A search waits for no article."""

    SEARCHES = 0
    OTHERS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the process is to open. `tokenizer` is the fingerprint that Kiwi has to have: dictionaries change."""

    user_words: Path | None
    synonyms: Path | None
    tokenizer: str
    model: str
    cache_dir: Path | None
    chunking: ChunkingParameters

    @classmethod
    def of(cls, settings: Settings) -> Order:
        """Raises InvalidSetting for a dictionary that cannot be read."""
        with_own(settings.synonyms)  # what is amiss is said at once
        return cls(
            user_words=settings.user_words,
            synonyms=settings.synonyms,
            tokenizer=fingerprint_with(settings.user_words),
            model=settings.encoder.model,
            cache_dir=settings.encoder.cache_dir,
            chunking=ChunkingParameters(settings.chunking.max_tokens, settings.chunking.overlap_sentences),
        )


class ReadingProcess:
    """The process for `order`; it starts at once. Safe to use from several threads."""

    @classmethod
    def started(cls, settings: Settings) -> ReadingProcess | None:
        """The process for these settings; None where their encoder is no kiwi-static, which is all it can encode with."""
        return cls(Order.of(settings)) if reads_morphemes(settings.encoder.model) else None

    def __init__(self, order: Order) -> None:
        self.order = order
        self._changing = threading.Lock()
        self._process = _Process(order)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it reads now."""
        return self._process.ready

    def wait(self) -> None:
        """Until it reads, some 3 s after its start; one that has died is started again. Raises what Kiwi and the encoder raise at
        their start."""
        self._running().wait()

    def close(self) -> None:
        """Ends it. Who asks later starts another one."""
        self._process.close()

    # ---- what it does

    def read(self, requests: Sequence[SearchRequest]) -> list[Understood]:
        """As `QueryReader.read`. What it dies of fails alone: where it ends at several, each is read by itself."""
        alone = len(requests) == 1
        try:
            found: list[Understood] = self._asked(_Line.SEARCHES, "read", requests, tries=_TRIES if alone else 1)
        except EncoderFailed as error:
            if not alone:
                return [one for request in requests for one in self.read([request])]
            log.error("%r was given up: %s", requests[0].text, error)  # noqa: TRY400 - the error says all there is
            return [Understood(failed={"lexical": str(error), "dense": str(error)})]
        return found

    def of(self, articles: Sequence[tuple[int, Article]]) -> list[list[AnalysedPassage]]:
        """As `Passages.of`."""
        made: list[list[AnalysedPassage]] = self._asked(_Line.OTHERS, "of", articles)
        return made

    def encoded(self, what: str, texts: Sequence[str]) -> Any:
        """What the method `what` of its encoder gives for `texts`."""
        return self._asked(_Line.OTHERS, what, texts)

    @cached_property
    def rows_of_forms(self) -> Mapping[str, int]:
        """As `KiwiStaticEncoder.rows_of_forms`."""
        rows: Mapping[str, int] = self._asked(_Line.OTHERS, "rows_of_forms")
        return rows

    def _asked(self, line: _Line, what: str, *arguments: object, tries: int = _TRIES) -> Any:
        for _ in range(tries):
            process = self._running()
            process.wait()
            try:
                done, answer = process.exchanged(line, (what, arguments))
            except (EOFError, OSError) as error:
                log.error("the process that reads texts ended (%s) at %s", error or "no answer", what)  # noqa: TRY400 - it has its own log
                process.close()
                continue
            if done:
                return answer
            raise answer
        raise EncoderFailed(
            f"the process that reads texts ended at the same request every time ({tries})",
            "the log says why; leave out what it died of",
        )

    def _running(self) -> _Process:
        with self._changing:
            if self._process.ended and time.monotonic() - self._process.since > _AGAIN_SECONDS:
                self._process = _Process(self.order)
            return self._process


class EncoderApart:
    """The kiwi-static of a `ReadingProcess`, whose `table` is mapped here too. A `TermEncoder`."""

    max_tokens = None

    def __init__(self, process: ReadingProcess, table: WeightedTable) -> None:
        self._process = process
        self._table = table

    @property
    def id(self) -> str:
        return self._table.id

    @property
    def dim(self) -> int:
        return self._table.dim

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        vectors: FloatArray = self._process.encoded("encode_queries", texts)
        return vectors

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        vectors: FloatArray = self._process.encoded("encode_passages", texts)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = self._process.encoded("count_tokens", texts)
        return counts

    def encode_terms(self, texts: Sequence[Sequence[str]]) -> FloatArray:
        """As `KiwiStaticEncoder.encode_terms`, in this process."""
        return self._table.encode_terms(texts, self._process.rows_of_forms)


class _Process:
    """One run of it."""

    def __init__(self, order: Order) -> None:
        self.since = time.monotonic()
        pipes = [Pipe() for _ in range(1 + len(_Line))]
        theirs = [end.fileno() for _, end in pipes]
        process = started(
            __name__, *map(str, theirs), pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        for _, end in pipes:
            end.close()
        self._told, *lines = [end for end, _ in pipes]
        self._lines = [(end, threading.Lock()) for end in lines]
        self._waiting = threading.Lock()
        self._trouble: Exception | None = None
        self._started = False
        self._process = process
        self.close = weakref.finalize(self, _end, process, [end for end, _ in pipes])
        with suppress(OSError):  # it has ended: `wait` says so
            self._told.send(order)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ready(self) -> bool:
        return self._started and self._trouble is None and not self.ended

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        with self._waiting:
            if not self._started:
                try:
                    self._trouble = self._told.recv()
                except (EOFError, OSError):
                    self._trouble = NotReady("the process that reads texts did not start", "its log says why")
                self._started = True
        if self._trouble is not None:
            raise self._trouble

    def exchanged(self, line: _Line, message: object) -> tuple[bool, Any]:
        """Its answer to `message`. Raises EOFError, OSError where it has ended."""
        end, taken = self._lines[line]
        with taken:
            end.send(message)
            answer: tuple[bool, Any] = end.recv()
            return answer


def _end(process: subprocess.Popen[bytes], ends: Sequence[Connection]) -> None:
    for end in ends:
        end.close()  # what it ends at
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    stopped(process, 0)


# ---- in the process


def _main(told: Connection, *lines: Connection) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and the like are for who started this, and ends it in order
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        does = _opened(told.recv())
    except Exception as error:  # noqa: BLE001 - whatever it is, who started this has to say it
        with suppress(OSError):
            told.send(_sendable(error))
        return 1
    keep_for_good()
    give_back()
    for line in lines:
        threading.Thread(target=_answer, args=(line, does), daemon=True).start()
    with suppress(EOFError, OSError):
        told.send(None)
        told.recv()  # until nobody is there any more
    os._exit(0)  # whatever is being read: nobody waits for it


def _opened(order: Order) -> dict[str, Callable[..., object]]:
    """What it does, by name."""
    analyser = Analyser.open(order.user_words, synonyms=order.synonyms)
    if analyser.fingerprint != order.tokenizer:
        raise Unavailable(
            f"the dictionary {order.user_words} was changed since the start ({analyser.fingerprint}, was {order.tokenizer})",
            "start again, or put it back; yeoul rebuild brings a new one into use",
        )
    encoder = open_encoder(order.model, analyser.kiwi, cache_dir=order.cache_dir, progress=True)
    assert isinstance(encoder, KiwiStaticEncoder)
    reader = QueryReader(analyser, encoder)
    reader.read([SearchRequest.checked("여울")])  # tables that are made when they are first used
    return {
        "read": reader.read,
        "of": Passages(analyser, encoder, order.chunking).of,
        "encode_queries": encoder.encode_queries,
        "encode_passages": encoder.encode_passages,
        "count_tokens": encoder.count_tokens,
        "rows_of_forms": encoder.rows_of_forms,
    }


def _answer(line: Connection, does: Mapping[str, Callable[..., object]]) -> None:
    with suppress(EOFError, OSError):  # nobody is there any more
        while True:
            what, arguments = line.recv()
            try:
                answer = True, does[what](*arguments)
            except Exception as error:  # noqa: BLE001 - who asked has to deal with it
                answer = False, _sendable(error)
            line.send(answer)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a library's error is made of
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    sys.exit(_main(*(Connection(int(number)) for number in sys.argv[1:])))
