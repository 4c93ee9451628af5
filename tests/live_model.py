"""What live indexing promises, as a model: the states that each article went through, and which of them a read may show.

A state begins with the change (its `seq`) that brought it. Whoever reads moves forward through an article's states: it may
skip some (superseded ones are never shown), it never goes back, and an answer that says "all changes up to S" has at least
the newest state up to S. Told what was accepted and what was read; knows nothing of stores, engines and threads.
"""

from __future__ import annotations

import random
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pipeline.documents import Article, passage_parts
from pipeline.retrieval.searcher import Hit

Answer = Literal["queued", "unchanged", "older", "unknown"]
Floors = dict[str, int]  # article → the state, by its seq, before which a reader may not go back

COMMON = "여울"  # a word of every passage: asking for it asks for every article
CATEGORIES = ("강", "산", "들", "바다")
_WORDS = "나무 바람 은행 다리 마을 학교 시장 공원 기차 바위 구름 노을 새벽 우산 편지 사진 극장 병원".split()
_MARK = re.compile(r"판본(\d+)표지")
_TAG = re.compile(r"<[^>]+>")  # a snippet's <mark> may stand in the middle of a version's mark
_SENTENCES = (2, 9)  # about as many passages with 16 words a passage, a third with 40


@dataclass(frozen=True, slots=True)
class State:
    """What an article is from the change `seq` on; `article` None: a search does not show it."""

    seq: int
    article: Article | None


@dataclass(frozen=True, slots=True)
class Sight:
    """All that an answer shows of one article."""

    revisions: frozenset[int]
    marks: frozenset[int]
    category: str | None
    tags: tuple[str, ...]

    @classmethod
    def of(cls, hit: Hit) -> Sight:
        """The revisions of all passages in the answer, and the versions' marks in every text of it."""
        shown = (hit.passage.title, hit.passage.text, _TAG.sub("", hit.snippet))
        revisions = {hit.passage.revision, *(passage_parts(p.passage_id)[1] for p in (hit.scored, *hit.others))}
        marks = {int(mark) for text in shown for mark in _MARK.findall(text)}
        return cls(frozenset(revisions), frozenset(marks), hit.passage.category, hit.passage.tags)


@dataclass(slots=True)
class _Known:
    """`digest`: the content accepted last; `updated_at`: of what time it is."""

    digest: str | None
    updated_at: datetime
    states: list[State] = field(default_factory=lambda: [State(0, None)])

    @property
    def newest(self) -> State:
        return self.states[-1]


def composed(chance: random.Random, article_id: str, number: int, *, category: str, **fields: object) -> Article:
    """Version `number` of an article: its mark stands in the title, in every sentence and in the tags."""
    mark = f"판본{number}표지"
    sentences = [
        f"{COMMON} {' '.join(chance.sample(_WORDS, 3))} {mark} 이야기를 {chance.choice(_WORDS)}에서 읽습니다."
        for _ in range(chance.randint(*_SENTENCES))
    ]
    title, body = f"{COMMON} 소식 {mark}", " ".join(sentences)
    return Article(id=article_id, title=title, body=body, category=category, tags=(mark,), **fields)  # type: ignore[arg-type]  # named as the fields


class Model:
    """Every article's accepted states. Hold `lock` over an acceptance and its record: a read may be quicker than a record."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._known: dict[str, _Known] = {}

    # ---- what is accepted

    def expected(self, article_id: str, article: Article | None) -> Answer:
        """What the inbox should say to this change (None: a delete)."""
        known = self._known.get(article_id)
        if known is None:
            return "unknown" if article is None else "queued"
        given = article.updated_at if article is not None else None
        if given is not None and given < known.updated_at:
            return "older"
        digest = article.content_hash if article is not None else None
        return "unchanged" if digest == known.digest else "queued"

    def record(self, article_id: str, article: Article | None, answer: Answer, seq: int) -> None:
        """Notes that the change was answered so; `seq` is its number where it is `queued`."""
        if answer in {"older", "unknown"}:
            return
        given = article.updated_at if article is not None else None
        moment = given or datetime.now(UTC)
        digest = article.content_hash if article is not None else None
        known = self._known.setdefault(article_id, _Known(digest, moment))
        known.digest, known.updated_at = digest, max(moment, known.updated_at)
        if answer == "queued":
            assert seq > known.newest.seq, f"{article_id}: {seq} was given after {known.newest.seq}"
            known.states.append(State(seq, article if article is not None and article.visible else None))

    def newest(self) -> dict[str, State]:
        """Article → where it stands when everything is indexed."""
        return {article_id: known.newest for article_id, known in self._known.items()}

    def status(self, article_id: str) -> str:
        """What the registry says of the article in the end; one that is only hidden is indexed."""
        return "deleted" if self._known[article_id].digest is None else "indexed"

    # ---- what is read

    def judge(
        self,
        seen: Mapping[str, Sight],
        floors: Floors,
        *,
        seq: int,
        asked: Callable[[Article], bool],
        whole: bool,
    ) -> tuple[Floors, list[str]]:
        """Where each article stands for the reader after an answer, and what is wrong with it.

        `floors`: where it stood when the read began; `seq`: what the answer says about itself; `asked`: whether the question
        asks for an article; `whole` False: that one is missing says nothing (see `Process.read`).
        """
        after: Floors = {}
        wrong = [f"{article_id}: nothing of it was ever accepted" for article_id in seen.keys() - self._known.keys()]
        with self.lock:
            for article_id, known in self._known.items():
                floor = max(floors.get(article_id, 0), _newest_up_to(known.states, seq))
                sight = seen.get(article_id)
                if sight is not None:
                    after[article_id], fault = _shown(known.states, sight, floor, asked)
                elif whole:
                    after[article_id], fault = _missing(known.states, floor, asked)
                else:  # says nothing about where the reader stands
                    after[article_id], fault = floor, None
                if fault is not None:
                    wrong.append(f"{article_id}: {fault} (at least {floor} is due)")
        return after, wrong


def _newest_up_to(states: list[State], seq: int) -> int:
    return states[bisect_right(states, seq, key=lambda state: state.seq) - 1].seq


def _shown(states: list[State], sight: Sight, floor: int, asked: Callable[[Article], bool]) -> tuple[int, str | None]:
    revision = max(sight.revisions)
    if len(sight.revisions) > 1 or len(sight.marks) > 1:
        return max(floor, revision), f"mixed: revisions {sorted(sight.revisions)}, versions {sorted(sight.marks)}"
    state = states[bisect_right(states, revision, key=lambda state: state.seq) - 1]
    if state.seq != revision or state.article is None:
        return floor, f"{revision} is shown, which was never to be"
    article = state.article
    expected = {int(mark) for mark in _MARK.findall(article.title)}
    if sight.marks != expected or (sight.category, sight.tags) != (article.category, article.tags):
        return revision, f"{revision} is shown with {sight}, which is not its content"
    if not asked(article):
        return revision, f"{revision} is shown and was not asked for"
    if revision < floor:
        return floor, f"returned: {revision} is shown"
    return revision, None


def _missing(states: list[State], floor: int, asked: Callable[[Article], bool]) -> tuple[int, str | None]:
    for state in states:
        if state.seq >= floor and (state.article is None or not asked(state.article)):
            return state.seq, None
    return floor, "vanished"
