"""Kiwi: text → morphemes, sentences and terms. The only file that makes a `Kiwi`.

A *term* is what the lexical leg matches: the lower-cased form of a content morpheme, or a whole compound (nouns that
stand together without a space) beside its parts, so that 전세대출 is found by 전세대출, 전세 and 대출. Terms carry no tag:
Kiwi tags a word alone at times otherwise than the same word in a sentence.

Knows nothing of encoders and stores.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import kiwipiepy
import kiwipiepy_model
from kiwipiepy import Kiwi, Token

from pipeline.errors import InvalidSetting

# What a term can be. Pronouns, connective adverbs and auxiliaries are left out: on the development sets they only added noise.
_CONTENT_TAGS = frozenset(
    "NNG NNP NNB NR SL SN SH XR XPN XSN MM MAG VV VV-I VV-R VA VA-I VA-R XSA-I W_URL W_EMAIL W_HASHTAG W_MENTION W_SERIAL "
    "W_EMOJI Z_SIOT".split()
)
_COMPOUND_TAGS = frozenset("NNG NNP NR SL SN SH XR XPN XSN".split())
_PLURAL_SUFFIXES = frozenset("들 님".split())  # 학생들, 고객님: the same word, no compound
_MAX_TERM_CHARS = 40  # a longer run without a space is data (a hash, a URL), and its parts stay findable
_RULES_VERSION = 1  # part of the fingerprint: raise it with every change of the rules in this file

_QUESTION_WORDS = frozenset("무엇 누구 언제 어디 얼마 어떤 어떻 어떻게 무슨 어느 몇 왜 뭐".split())
_COMPOUND_WEIGHT = 0.5  # of a compound in a query: its parts are in the query too
_VARIANT_WEIGHT = 0.5  # of a term that only another analysis of the query yields
_CARRIERS = ("{}를 알아보았다", "그 {}에 대하여")  # a word alone is analysed as if it stood in a sentence


class Term(NamedTuple):
    """One occurrence of a term; `start` and `end` are character offsets into the analysed text."""

    form: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class QueryTerms:
    """The terms of a query with their weights (> 0; 1 is a morpheme of the plain analysis)."""

    weights: dict[str, float]


class Analyser:
    """Kiwi with the user's dictionary. Safe to use from several threads."""

    def __init__(self, kiwi: Kiwi, dictionary_hash: str = "") -> None:
        self.kiwi = kiwi
        self._dictionary_hash = dictionary_hash
        kiwi.tokenize("시작")  # the first call loads the model lazily, some 1.5 s: pay it here, not in the first search

    @classmethod
    def open(cls, user_words: Path | None = None, workers: int = 0) -> Analyser:
        """Starts Kiwi (2-4 s) with `user_words`, a TSV of word, tag, score; `workers` 0 means one a core.

        Raises InvalidSetting for a dictionary that is missing or has a bad line.
        """
        kiwi = Kiwi(num_workers=workers or None)
        return cls(kiwi, _add_user_words(kiwi, user_words) if user_words else "")

    @property
    def fingerprint(self) -> str:
        """Two analysers with one fingerprint give the same terms."""
        versions = f"kiwi {kiwipiepy.__version__}, model {kiwipiepy_model.__version__}, rules {_RULES_VERSION}"
        return f"{versions}, user words {self._dictionary_hash or 'none'}"

    def analyse(self, texts: Iterable[str]) -> Iterator[list[Token]]:
        """The morphemes of each text, in order; lazily, on Kiwi's own threads, without holding the GIL."""
        yield from self.kiwi.tokenize(iter(texts))

    def query_terms(self, text: str) -> QueryTerms:
        """The terms of a query, from more than one analysis.

        The plain analysis counts fully. Each word is analysed again inside a carrier sentence, because Kiwi may cut a
        word alone otherwise than in running text (기차 alone can become an adjective); what only those yield counts half.
        """
        words = text.split()
        variants = [carrier.format(word) for word in words for carrier in _CARRIERS]
        plain, *others = (self.kiwi.tokenize(variant) for variant in [text, *variants])
        weights: dict[str, float] = {}
        parts = Counter(_form(t) for t in plain if t.tag in _CONTENT_TAGS)
        weights |= {form: float(times) for form, times in parts.items() if form not in _QUESTION_WORDS}
        for form, _, _ in terms_of(plain):
            if form not in _QUESTION_WORDS:
                weights.setdefault(form, _COMPOUND_WEIGHT)
        limits = [(len(c[: c.index("{")]), len(word)) for word in words for c in _CARRIERS]
        for tokens, (offset, length) in zip(others, limits, strict=True):
            inside = [t for t in tokens if t.start >= offset and t.start + t.len <= offset + length]
            for form, _, _ in terms_of(inside):
                if form not in _QUESTION_WORDS:
                    weights.setdefault(form, _VARIANT_WEIGHT)
        return QueryTerms(weights)


def _form(token: Token) -> str:
    form: str = token.form
    return form.lower().replace(" ", "")


def terms_of(tokens: Sequence[Token]) -> list[Term]:
    """The terms of analysed text in its order, a compound after its parts' first."""
    # One pass with everything in locals: a bulk load comes by here for every morpheme of the corpus.
    found: list[Term] = []
    run: list[str] = []  # forms of nouns that stand together without a space
    run_start = run_end = run_place = 0
    for token in tokens:
        tag = token.tag
        if tag not in _CONTENT_TAGS:
            if run:
                _close(run, run_start, run_end, run_place, found)
                run = []
            continue
        form, start = token.form.lower(), token.start
        if " " in form:
            form = form.replace(" ", "")
        end = start + token.len
        joins = tag in _COMPOUND_TAGS and form not in _PLURAL_SUFFIXES
        if run and not (joins and start == run_end):
            _close(run, run_start, run_end, run_place, found)
            run = []
        if joins:
            if not run:
                run_start, run_place = start, len(found) + 1
            run.append(form)
            run_end = end
        found.append(Term(form, start, end))
    if run:
        _close(run, run_start, run_end, run_place, found)
    return found


def _close(run: Sequence[str], start: int, end: int, place: int, found: list[Term]) -> None:
    """Puts the compound of `run` behind its first part, where it is one."""
    if len(run) < 2:
        return
    form = "".join(run)
    if len(form) <= _MAX_TERM_CHARS:
        found.insert(place, Term(form, start, end))


def _add_user_words(kiwi: Kiwi, path: Path) -> str:
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("user_words", str(path), f"a readable UTF-8 file ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        word, tag, score = ([*line.rstrip("\n").split("\t"), "", ""])[:3]
        try:
            kiwi.add_user_word(word.strip(), tag.strip() or "NNP", float(score) if score.strip() else 0.0)
        except ValueError as error:
            rule = f"lines of word, tag, score separated by tabs; line {number} is {line!r} ({error})"
            raise InvalidSetting("user_words", str(path), rule) from error
    return hashlib.sha256(content).hexdigest()[:12]
