"""The piece of a passage that shows why it was found, as HTML with the matches marked.

Works on the term and sentence offsets stored with the passage: Kiwi never runs here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import islice

from pipeline.documents import Passage, Span

SNIPPET_CHARS = 160  # about three lines on a phone
_ELLIPSIS = "…"
_OPEN, _CLOSE = "\x01", "\x02"  # around matches until the text is escaped: clean text has no control characters

Hit = tuple[int, int, str]  # a term of the query and where it stands


def matched_terms(passage: Passage, weights: Mapping[str, float]) -> list[str]:
    """The query's terms that stand in the passage's text or title, in the order of the query."""
    held = {*passage.terms, *passage.title_terms}
    return [term for term in weights if term in held]


def hits_in_text(passage: Passage, weights: Mapping[str, float]) -> list[Hit]:
    """The query's terms in the text, in its order; a swallowed morpheme stands nowhere, and comes with an empty span."""
    found = zip(passage.terms, passage.term_spans, strict=True)
    return [(start, end, term) for term, (start, end) in found if term in weights]


def matched_spans(hits: Sequence[Hit]) -> list[Span]:
    """Where `hits` stand, in order, overlapping ones joined."""
    joined: list[Span] = []
    for start, end in sorted((start, end) for start, end, _ in hits if start < end):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def shown_whole(passage: Passage) -> bool:
    """Whether its snippet is all of it, whatever is asked."""
    return len(passage.text) <= SNIPPET_CHARS


def snippet(passage: Passage, weights: Mapping[str, float], *, likely: Span | None = None) -> str:
    """About 160 characters of the passage, HTML-escaped but for `<mark>` around matches.

    The window holds the most distinct query terms by weight; without a match it starts at `likely` (the sentence most
    similar to the query), or at the beginning.
    """
    hits = hits_in_text(passage, weights)
    matches = matched_spans(hits)
    start, end = _around(passage, _densest(hits, weights)) if matches else _around(passage, likely or (0, 0))
    text = passage.text
    parts = [_ELLIPSIS if start > 0 else ""]
    place = start
    for left, right in matches:
        if right <= start or left >= end:
            continue
        left, right = max(left, start), min(right, end)  # noqa: PLW2901
        parts += [text[place:left], _OPEN, text[left:right], _CLOSE]
        place = right
    parts += [text[place:end], _ELLIPSIS if end < len(text) else ""]
    escaped = html.escape("".join(parts))  # at once: a snippet has a dozen parts
    return escaped.replace(_OPEN, "<mark>").replace(_CLOSE, "</mark>").replace("\n", " ")


def _densest(hits: Sequence[Hit], weights: Mapping[str, float]) -> Span:
    """From a hit to the end of the last one that fits into a window with it: the greatest sum of distinct terms' weights, the
    first of equals."""
    most = sum(weights[term] for term in {term for _, _, term in hits})
    best, best_span = -1.0, (0, 0)
    for number, (start, _, _) in enumerate(hits):
        limit, last = start + SNIPPET_CHARS, start
        terms: set[str] = set()
        for begin, end, term in islice(hits, number, None):
            if begin >= limit:
                break
            if end <= limit:
                terms.add(term)
                last = max(last, end)
        value = sum(weights[term] for term in terms)
        if value > best:
            best, best_span = value, (start, last)
        if value >= most:
            break  # no later window holds more
    return best_span


def _around(passage: Passage, core: Span) -> Span:
    """A window of SNIPPET_CHARS that holds `core`, starting at its sentence where that fits."""
    text = passage.text
    if shown_whole(passage):
        return 0, len(text)
    sentence = max((start for start, _ in passage.sentence_spans if start <= core[0]), default=0)
    spare = max(0, SNIPPET_CHARS - (core[1] - core[0]))
    start = sentence if core[1] - sentence <= SNIPPET_CHARS else max(0, core[0] - min(spare, SNIPPET_CHARS // 4))
    start = max(0, min(start, len(text) - SNIPPET_CHARS))
    if 0 < start < len(text) and start != sentence:
        blank = text.find(" ", start, core[0])  # not in the middle of a word
        start = blank + 1 if blank >= 0 else start
    return start, min(len(text), start + SNIPPET_CHARS)
