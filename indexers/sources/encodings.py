"""Files as bytes and as text: gzip undone, UTF-8 or CP949 (EUC-KR) told apart by the bytes themselves.

What a page declares about its encoding is not asked: it is wrong too often. Knows nothing about formats.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Literal, cast

from pipeline.errors import UnreadableSource

TextEncoding = Literal["utf-8-sig", "cp949"]  # "-sig": a byte order mark at the beginning is no text

_CHUNK_BYTES = 1 << 20  # 1 MiB a read: enough to make the calls cheap, little memory
_GUESSED_BYTES = 1 << 16  # 64 KiB of a file that is refused are enough to guess what it is
_RULED_OUT = frozenset(("utf_8", "cp949", "euc_kr", "ascii"))
# Bytes of another encoding can be valid CP949 by accident (GBK, Shift-JIS). Korean text is mostly Hangul, with few hanja.
_LEAST_HANGUL = (
    0.5  # share of the characters outside ASCII; of the syllables only the 2,350 of KS X 1001, which texts use
)
_MOST_HANJA = 0.2  # the same
_FIRST_OF_KS_X_1001 = 0xA1  # both bytes of a character; CP949 put the other 8,822 syllables below
_HANGUL = re.compile("[\uac00-\ud7a3\u3131-\u318e]")
_HANJA = re.compile("[\u4e00-\u9fff\uf900-\ufaff]")
_NON_ASCII = re.compile("[^\x00-\x7f]")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of `path`, unpacked when it ends in `.gz`. Raises UnreadableSource naming the file."""
    try:
        with path.open("rb") as stream:
            if path.suffix.lower() != ".gz":
                yield stream
                return
            with gzip.open(stream) as unpacked:
                yield cast(IO[bytes], unpacked)  # typeshed has GzipFile apart from IO[bytes]; it reads the same
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableSource(
            f"{path} is not a whole gzip file: {error}", "pack it again, or give it unpacked"
        ) from error
    except FileNotFoundError as error:
        raise UnreadableSource(f"{path} does not exist", "check the path") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableSource(f"{path} cannot be read: {reason}", "check its permissions and the disk") from error


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """The text of `path`, line breaks as they are. Raises UnreadableSource as `text_encoding` does."""
    encoding = text_encoding(path)
    with opened(path) as stream, TextIOWrapper(stream, encoding, newline="") as text:
        yield text


def text_encoding(path: Path) -> TextEncoding:
    """How `path` is written, from all of its bytes. Raises UnreadableSource when it is neither UTF-8 nor CP949."""
    offset = first_byte_not_utf8(path)
    if offset is None:
        return "utf-8-sig"
    if is_korean_cp949(path):
        return "cp949"
    raise refusal(path, offset)


def first_byte_not_utf8(path: Path) -> int | None:
    """Offset of the first byte (unpacked) at which `path` stops being UTF-8; None where it is UTF-8 throughout."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with opened(path) as stream:
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut in two
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return read - pending + error.start
            if not chunk:
                return None
            read += len(chunk)


def is_korean_cp949(path: Path) -> bool:
    """Whether `path` is valid CP949 (which contains EUC-KR) and reads as Korean."""
    decoder = codecs.getincrementaldecoder("cp949")()
    counts: Counter[str] = Counter()
    with opened(path) as stream:
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            try:
                counts.update(_NON_ASCII.findall(decoder.decode(chunk, final=not chunk)))
            except UnicodeDecodeError:
                return False
            if not chunk:
                return _reads_as_korean(counts)


def _reads_as_korean(counts: Counter[str]) -> bool:
    """`counts`: how often each character outside ASCII occurs."""
    hangul = sum(
        count
        for char, count in counts.items()
        if _HANGUL.match(char) and min(char.encode("cp949")) >= _FIRST_OF_KS_X_1001
    )
    hanja = sum(count for char, count in counts.items() if _HANJA.match(char))
    return hangul >= _LEAST_HANGUL * counts.total() and hanja <= _MOST_HANJA * counts.total()


def refusal(path: Path, offset: int) -> UnreadableSource:
    """The error for a file that is neither UTF-8 (which ends at byte `offset`) nor CP949."""
    from charset_normalizer import from_bytes  # noqa: PLC0415 - 50 ms, needed only here

    with opened(path) as stream:
        sample = stream.read(_GUESSED_BYTES)
    guess = from_bytes(sample).best()
    likely = f"; it may be {guess.encoding}" if guess is not None and guess.encoding not in _RULED_OUT else ""
    return UnreadableSource(f"{path} is neither UTF-8 (ends at byte {offset:,}) nor CP949{likely}", "save it as UTF-8")
