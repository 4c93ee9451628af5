from __future__ import annotations

import numpy as np
import pytest

from pipeline.index.postings import Postings


def add(postings: Postings, row: int, terms: list[int]) -> None:
    postings.reserve(row + 1)
    postings.add(np.array([row]), np.array(terms, dtype=np.int32), np.array([len(terms)]))


def test_segments_stay_few_and_below_the_cap_as_documents_arrive_singly() -> None:
    postings = Postings(segment_postings=1_000)
    random = np.random.default_rng(3)
    for row in range(600):
        add(postings, row, random.choice(400, size=10, replace=False).tolist())
    assert max(segment.live for segment in postings._segments.values()) <= 1_000
    # 6,000 postings: at most a dozen that cannot be paired below the cap, and a geometric tail.
    assert postings.segments <= 12 + 10


def test_removed_postings_give_their_memory_back() -> None:
    postings = Postings()
    for row in range(200):
        add(postings, row, list(range(row % 7, row % 7 + 50)))
    full = postings.nbytes
    postings.remove(np.arange(0, 200, 2))
    postings.remove(np.arange(1, 150, 2))
    assert postings.nbytes < full / 3
    postings.remove(np.arange(151, 200, 2))
    assert postings.segments == 0


def test_remove_names_each_term_once_a_document() -> None:
    postings = Postings()
    add(postings, 3, [5, 5, 9])
    add(postings, 1, [5])
    assert sorted(postings.remove(np.array([3, 1])).tolist()) == [5, 5, 9]


@pytest.mark.parametrize(("times", "counted"), [(255, 255), (256, 255)])
def test_occurrences_saturate_instead_of_wrapping(times: int, counted: int) -> None:
    postings = Postings()
    add(postings, 0, [7] * times)
    assert [array.tolist() for name, array in postings.state().items() if name.endswith(".tf")] == [[counted]]
