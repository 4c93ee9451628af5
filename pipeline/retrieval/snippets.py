"""The piece of a passage that shows why it was found, as HTML with the matches marked.

Works on the term and sentence offsets stored with the passage: Kiwi never runs here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from itertools import islice, takewhile

from pipeline.documents import Passage, Span

SNIPPET_CHARS = 160  # about three lines on a phone
_ELLIPSIS = "…"


def matched_terms(passage: Passage, weights: Mapping[str, float]) -> list[str]:
    """The query's terms that stand in the passage's text or title, in the order of the query."""
    held = {*passage.terms, *passage.title_terms}
    return [term for term in weights if term in held]


def matched_spans(passage: Passage, weights: Mapping[str, float]) -> list[Span]:
    """Where the query's terms stand in the text, in order, overlapping ones joined; a swallowed morpheme stands nowhere."""
    found = zip(passage.terms, passage.term_spans, strict=True)
    spans = sorted((start, end) for term, (start, end) in found if term in weights and start < end)
    joined: list[Span] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def snippet(passage: Passage, weights: Mapping[str, float], *, likely: Span | None = None) -> str:
    """About 160 characters of the passage, HTML-escaped but for `<mark>` around matches.

    The window holds the most distinct query terms by weight; without a match it starts at `likely` (the sentence most
    similar to the query), or at the beginning.
    """
    matches = matched_spans(passage, weights)
    start, end = _window(passage, weights) if matches else _around(passage, likely or (0, 0))
    text = passage.text
    parts = [_ELLIPSIS if start > 0 else ""]
    place = start
    for left, right in matches:
        if right <= start or left >= end:
            continue
        left, right = max(left, start), min(right, end)  # noqa: PLW2901
        parts += [html.escape(text[place:left]), "<mark>", html.escape(text[left:right]), "</mark>"]
        place = right
    parts += [html.escape(text[place:end]), _ELLIPSIS if end < len(text) else ""]
    return "".join(parts).replace("\n", " ")


def _window(passage: Passage, weights: Mapping[str, float]) -> Span:
    """The window with the greatest sum of distinct query terms' weights; the first of equals."""
    hits = [(span, term) for term, span in zip(passage.terms, passage.term_spans, strict=True) if term in weights]
    best, best_span = -1.0, (0, 0)
    for i, ((start, _), _) in enumerate(hits):
        limit = start + SNIPPET_CHARS
        near = takewhile(lambda hit: hit[0][0] < limit, islice(hits, i, None))  # noqa: B023 - used up at once
        inside = [(end, term) for (_, end), term in near if end <= limit]
        value = sum(weights[term] for term in {term for _, term in inside})
        if value > best:
            best, best_span = value, (start, max((end for end, _ in inside), default=start))
    return _around(passage, best_span)


def _around(passage: Passage, core: Span) -> Span:
    """A window of SNIPPET_CHARS that holds `core`, starting at its sentence where that fits."""
    text = passage.text
    if len(text) <= SNIPPET_CHARS:
        return 0, len(text)
    sentence = max((start for start, _ in passage.sentence_spans if start <= core[0]), default=0)
    spare = max(0, SNIPPET_CHARS - (core[1] - core[0]))
    start = sentence if core[1] - sentence <= SNIPPET_CHARS else max(0, core[0] - min(spare, SNIPPET_CHARS // 4))
    start = max(0, min(start, len(text) - SNIPPET_CHARS))
    if 0 < start < len(text) and start != sentence:
        blank = text.find(" ", start, core[0])  # not in the middle of a word
        start = blank + 1 if blank >= 0 else start
    return start, min(len(text), start + SNIPPET_CHARS)
