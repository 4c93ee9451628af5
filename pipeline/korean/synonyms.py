"""Synonyms: the words people type → the words articles use for the same thing (부치다 → 송금, 잘리다 → 해고).

One file is shipped, written by hand without a look at any judged query; `synonyms` names a file of one's own, whose lines
come before the shipped ones. A line is a word and, after tabs, up to four that mean the same; a word alone has no synonyms
any more. Verbs and adjectives stand in their dictionary form (부치다). Entries go one way and are not chained.

Knows nothing of analysis: words here, terms in `morphemes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from pipeline.errors import InvalidSetting
from pipeline.korean.hangul import normalise

_SHIPPED = "synonyms.tsv"
_RULE = "lines of a word and what means the same, with tabs between"

Entries = Mapping[str, tuple[str, ...]]  # word → its synonyms


def shipped() -> Entries:
    """The synonyms that come with Yeoul."""
    return _entries(resources.files(__package__).joinpath(_SHIPPED).read_text("utf-8"), _SHIPPED)


def with_own(path: Path | None) -> Entries:
    """The shipped synonyms, those of the words in the file `path` replaced. Raises InvalidSetting for an unusable file."""
    if path is None:
        return shipped()
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("synonyms", str(path), f"a readable UTF-8 file ({error})") from error
    return {**shipped(), **_entries(text, str(path))}


def _entries(text: str, name: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(normalise(text).split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        word, *synonyms = ("".join(part.split()) for part in line.rstrip().split("\t"))  # terms hold no space
        if not word or not all(synonyms):
            raise InvalidSetting("synonyms", name, f"{_RULE}; line {number} has an empty one")
        if word in found:
            raise InvalidSetting("synonyms", name, f"{_RULE}, a line a word; line {number} has {word!r} again")
        found[word] = tuple(synonyms)
    return found
