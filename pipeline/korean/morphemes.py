"""Kiwi: text → morphemes, sentences and terms. The only file that makes a `Kiwi`.

A *term* is what the lexical leg matches: the lower-cased form of a content morpheme, or a whole compound (nouns that
stand together without a space) beside its parts, so that 전세대출 is found by 전세대출, 전세 and 대출. Terms carry no tag:
Kiwi tags a word alone at times otherwise than the same word in a sentence.

Knows nothing of encoders and stores.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import kiwipiepy
import kiwipiepy_model
from kiwipiepy import Kiwi, Token

from pipeline.errors import InvalidSetting
from pipeline.korean.synonyms import Entries, with_own

# What a term can be. Pronouns, connective adverbs and auxiliaries are left out: on the development sets they only added noise.
_CONTENT_TAGS = frozenset(
    "NNG NNP NNB NR SL SN SH XR XPN XSN MM MAG VV VV-I VV-R VA VA-I VA-R XSA-I W_URL W_EMAIL W_HASHTAG W_MENTION W_SERIAL "
    "W_EMOJI Z_SIOT".split()
)
# A determiner without a space behind it is half of a noun (총급여, 그날), or of one that Kiwi cut (한도 as "one degree").
_COMPOUND_TAGS = frozenset("NNG NNP NNB NR SL SN SH XR XPN XSN MM".split())
_NUMBER_TAGS = frozenset(["SN", "NR"])  # 3년, 5천 원: amounts, no compounds
_PLURAL_SUFFIXES = frozenset("들 님".split())  # 학생들, 고객님: the same word, no compound
_MAX_TERM_CHARS = 40  # a longer run without a space is data (a hash, a URL), and its parts stay findable
_RULES_VERSION = 2  # part of the fingerprint: raise it with every change of the rules in this file

_QUESTION_WORDS = frozenset("무엇 누구 언제 어디 얼마 어떤 어떻 어떻게 무슨 어느 몇 왜 뭐".split())
_COMPOUND_WEIGHT = 0.5  # of a compound in a query: its parts are in the query too
_VARIANT_WEIGHT = 0.5  # of a term that only another analysis of the query yields
_SYNONYM_WEIGHT = 0.5  # of a synonym's term, times that of the word it stands for
Term = tuple[str, int, int]  # one occurrence: form, and its start and end as character offsets into the analysed text

_NAMING_TAGS = ("NNG", "NNP", "XR", "VV", "VA", "SL")  # what a word with synonyms is read as
_REMEMBERED_WORDS = 32_768  # of queries, with what the carriers make of them: some 10 MB
_EDGES = " \t\"'`.,!?;:()[]{}<>~…·‘’“”「」『』《》〈〉"  # not part of a word
_CARRIERS = ("{}{을} 알아보았다", "그 {}에 대하여")  # a word alone is analysed as if it stood in a sentence


@dataclass(frozen=True, slots=True)
class QueryTerms:
    """The terms of a query with their weights (> 0; 1 is a morpheme of the plain analysis), apart from them the terms of
    their synonyms, and all morphemes of the plain analysis."""

    weights: dict[str, float]
    synonyms: dict[str, float] = field(default_factory=dict)
    morphemes: tuple[Token, ...] = field(default=(), repr=False)


class Analyser:
    """Kiwi with the user's dictionary. Safe to use from several threads."""

    def __init__(self, kiwi: Kiwi, dictionary_hash: str = "", synonyms: Entries = MappingProxyType({})) -> None:
        self.kiwi = kiwi
        self._dictionary_hash = dictionary_hash
        self._synonyms = synonyms
        self._other_forms: dict[str, tuple[str, ...]] = {}  # of words of queries, the oldest first
        self._remembering = threading.Lock()
        kiwi.tokenize("시작")  # the first call loads the model lazily, some 1.5 s: pay it here, not in the first search

    @classmethod
    def open(cls, user_words: Path | None = None, *, synonyms: Path | None = None) -> Analyser:
        """Starts Kiwi (2-4 s) with `user_words`, a TSV of word, tag, score, and `synonyms` beside the shipped ones.

        Raises InvalidSetting for a file that is missing or has a bad line.
        """
        entries = with_own(synonyms)
        words, dictionary_hash = _user_words(user_words) if user_words else ([], "")
        kiwi = Kiwi()
        if user_words:
            _add(kiwi, words, user_words)
        return cls(kiwi, dictionary_hash, entries)

    @property
    def fingerprint(self) -> str:
        """Two analysers with one fingerprint give the same terms."""
        return _fingerprint(self._dictionary_hash)

    def is_up_to_date(self, user_words: Path | None) -> bool:
        """Whether this Kiwi has the words that the dictionary holds now. Raises InvalidSetting as `open` does."""
        return self._dictionary_hash == (_user_words(user_words)[1] if user_words else "")

    def analyse(self, texts: Iterable[str]) -> Iterator[list[Token]]:
        """The morphemes of each text, in order; lazily, on Kiwi's own threads, without holding the GIL."""
        yield from self.kiwi.tokenize(iter(texts))

    def query_terms(self, text: str) -> QueryTerms:
        """The terms of a query, from more than one analysis.

        The plain analysis counts fully. Each word is analysed again inside a carrier sentence, because Kiwi may cut a
        word alone otherwise than in running text (기차 alone can become an adjective), and a word whose stem no analysis
        found is a term as it stands (알림, which Kiwi alone reads as a form of 알리다); what only those yield counts
        half. Words of questions (무엇, 얼마) count only where nothing else is left.
        """
        return self.terms_of_queries([text])[0]

    def terms_of_queries(self, texts: Sequence[str]) -> list[QueryTerms]:
        """What `query_terms` gives for each, analysed together, on Kiwi's threads.

        What a word is in the carriers depends on the word alone, and is remembered.
        """
        words = [dict.fromkeys(stripped for w in text.split() if (stripped := w.strip(_EDGES))) for text in texts]
        forms = {word: self._other_forms.get(word) for asked in words for word in asked}
        new = [word for word, known in forms.items() if known is None]
        carried = (_carried(carrier, word) for word in new for carrier in _CARRIERS)
        analysed = self.kiwi.tokenize(iter([*texts, *carried]))
        plain = list(islice(analysed, len(texts)))
        for word in new:
            forms[word] = _other_forms(word, list(islice(analysed, len(_CARRIERS))))
        self._remember({word: forms[word] or () for word in new})
        return [
            self._query_terms(tokens, chain.from_iterable(forms[word] or () for word in asked))
            for tokens, asked in zip(plain, words, strict=True)
        ]

    def _query_terms(self, plain: Sequence[Token], others: Iterable[str]) -> QueryTerms:
        weights = {form: float(times) for form, times in Counter(_forms(plain)).items()}
        for form, _, _ in terms_of(plain):
            weights.setdefault(form, _COMPOUND_WEIGHT)
        for form in others:
            weights.setdefault(form, _VARIANT_WEIGHT)
        weights = {form: weight for form, weight in weights.items() if form not in _QUESTION_WORDS} or weights
        named = {t.form.lower() for t in plain if t.tag.startswith(_NAMING_TAGS)}
        elsewise = set(_forms(plain)) - named  # 약 10만 원, 2차: not the medicine, not the car
        synonyms: dict[str, float] = {}
        for form, weight in weights.items():
            for other in self._synonyms_of.get(form, ()) if form not in elsewise else ():
                if other not in weights:
                    synonyms[other] = max(synonyms.get(other, 0.0), weight * _SYNONYM_WEIGHT)
        return QueryTerms(weights, synonyms, tuple(plain))

    def _remember(self, forms: Mapping[str, tuple[str, ...]]) -> None:
        """Keeps them, and forgets the oldest of too many."""
        with self._remembering:
            self._other_forms |= {word: found for word, found in forms.items() if len(word) <= _MAX_TERM_CHARS}
            for word in list(islice(self._other_forms, max(0, len(self._other_forms) - _REMEMBERED_WORDS))):
                del self._other_forms[word]

    @cached_property
    def _synonyms_of(self) -> dict[str, tuple[str, ...]]:
        """Term → the terms of its synonyms; an entry whose word is no one term (못갚다) is left out."""
        words = list(dict.fromkeys(word for entry in self._synonyms.items() for word in (entry[0], *entry[1])))
        forms = dict(zip(words, map(_forms, self.kiwi.tokenize(iter(words))), strict=True))
        found: dict[str, tuple[str, ...]] = {}
        for word, synonyms in self._synonyms.items():
            terms = _terms_of_word(word, forms[word])[:1]
            others = [term for synonym in synonyms for term in _terms_of_word(synonym, forms[synonym])]
            for term in terms:
                found[term] = tuple(dict.fromkeys([*found.get(term, ()), *others]))
        return found


def fingerprint_with(user_words: Path | None) -> str:
    """The fingerprint of an analyser opened now, without Kiwi. Raises InvalidSetting for a file that is missing or has a bad
    line."""
    return _fingerprint(_user_words(user_words)[1] if user_words else "")


def _fingerprint(dictionary_hash: str) -> str:
    versions = f"kiwi {kiwipiepy.__version__}, model {kiwipiepy_model.__version__}, rules {_RULES_VERSION}"
    return f"{versions}, user words {dictionary_hash or 'none'}"


def _carried(carrier: str, word: str) -> str:
    return carrier.format(word, 을=_object_particle(word))


def _other_forms(word: str, carried: Sequence[Sequence[Token]]) -> tuple[str, ...]:
    """What `word` is in the analysed carrier sentences, and the word itself where none of that is its stem."""
    forms: list[str] = []
    for carrier, tokens in zip(_CARRIERS, carried, strict=True):
        start = carrier.index("{}")
        inside = [t for t in tokens if t.start >= start and t.start + t.len <= start + len(word)]
        forms += [form for form, _, _ in terms_of(inside)]
    whole = word.lower()
    if len(whole) <= _MAX_TERM_CHARS and not any(len(form) > 1 and whole.startswith(form) for form in forms):
        forms.append(whole)
    return tuple(forms)


def _forms(tokens: Iterable[Token]) -> list[str]:
    return [token.form.lower().replace(" ", "") for token in tokens if token.tag in _CONTENT_TAGS]


def _terms_of_word(word: str, forms: Sequence[str]) -> list[str]:
    """The terms of a word with the content morphemes `forms`: a verb's stem (none where it has several), or the noun as it
    stands (Kiwi alone reads 차임 as 차 with an ending) and, of a compound, its parts; one character stands for too much."""
    if word.endswith("다"):
        return list(forms) if len(forms) == 1 else []
    parts = forms if len(forms) > 1 else ()
    return [word.lower(), *(form for form in parts if len(form) > 1)]


def _object_particle(word: str) -> str:
    """을 after a syllable with a final consonant, 를 else: a wrong particle becomes part of an unknown noun."""
    place = ord(word[-1]) - ord("가")  # syllables are ordered by initial, vowel and final: 28 of these, none the first
    return "을" if 0 <= place <= ord("힣") - ord("가") and place % 28 else "를"


def terms_of(tokens: Sequence[Token]) -> list[Term]:
    """The terms of analysed text in its order, a compound after its parts' first."""
    # One pass with everything in locals: a bulk load comes by here for every morpheme of the corpus.
    found: list[Term] = []
    run: list[str] = []  # forms of nouns that stand together without a space
    run_start = run_end = run_place = 0
    before = ""  # tag of the run's last noun
    for token in tokens:
        tag = token.tag
        if tag not in _CONTENT_TAGS:
            if run:
                if len(run) > 1:
                    _close(run, run_start, run_end, run_place, found)
                run = []
            continue
        form, start = token.form.lower(), token.start
        if " " in form:
            form = form.replace(" ", "")
        end = start + token.len
        joins = tag in _COMPOUND_TAGS and form not in _PLURAL_SUFFIXES
        if tag == "NNB":  # 영업일, 결제일; alone it is no beginning
            joins = bool(run) and before not in _NUMBER_TAGS
        if run and not (joins and start == run_end):
            if len(run) > 1:
                _close(run, run_start, run_end, run_place, found)
            run = []
        if joins:
            if not run:
                run_start, run_place = start, len(found) + 1
            run.append(form)
            run_end = end
        found.append((form, start, end))
        before = tag
    if len(run) > 1:
        _close(run, run_start, run_end, run_place, found)
    return found


def _close(run: Sequence[str], start: int, end: int, place: int, found: list[Term]) -> None:
    """Puts the compound of `run`, two or more nouns, behind its first part."""
    form = "".join(run)
    if len(form) <= _MAX_TERM_CHARS:
        found.insert(place, (form, start, end))


class _UserWord(NamedTuple):
    line: int
    word: str
    tag: str
    score: float


def _user_words(path: Path) -> tuple[list[_UserWord], str]:
    """The words of a dictionary and the hash of its content."""
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("user_words", str(path), f"a readable UTF-8 file ({error})") from error
    words = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            words.append(_user_word(number, *(part.strip() for part in line.rstrip().split("\t"))))
        except (TypeError, ValueError) as error:  # TypeError: too many columns
            raise _bad_line(path, number, error) from error
    return words, hashlib.sha256(content).hexdigest()[:12]


def _user_word(number: int, word: str, tag: str = "", score: str = "") -> _UserWord:
    value = float(score or 0)
    if not word or not math.isfinite(value):
        raise ValueError("no word" if not word else "the score is no finite number")
    return _UserWord(number, word, tag or "NNP", value)


def _add(kiwi: Kiwi, words: Iterable[_UserWord], path: Path) -> None:
    for number, word, tag, score in words:
        try:
            kiwi.add_user_word(word, tag, score)
        except ValueError as error:
            raise _bad_line(path, number, error) from error


def _bad_line(path: Path, number: int, error: Exception) -> InvalidSetting:
    rule = f"lines of word, tag and score with tabs between; line {number} is not ({error})"
    return InvalidSetting("user_words", str(path), rule)
