"""What the words of a query prove: rarity in the language, and the weight that follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoding import word_probabilities
from pipeline.encoding.word_probabilities import form_probabilities
from pipeline.korean.morphemes import Analyser
from pipeline.retrieval.evidence import adapted, rarities

_SHARES = st.floats(0, 1)


@pytest.fixture(scope="module")
def probabilities(analyser: Analyser) -> dict[str, float]:
    return form_probabilities(analyser.kiwi)


def test_common_words_are_told_from_rare_and_unknown_ones(probabilities: dict[str, float]) -> None:
    words = ["받", "신청", "돈", "적금", "아시클로버", "조동리"]
    found = rarities(words, probabilities)
    assert list(found) == words
    assert found["받"] < found["신청"] < 0.1 < found["돈"] < found["적금"] < 1
    assert found["아시클로버"] == found["조동리"] == 1


def test_a_form_counts_for_all_morphemes_that_are_written_so(probabilities: dict[str, float]) -> None:
    assert sum(probabilities.values()) == pytest.approx(1, abs=0.05)  # the shipped table is rounded to 4%
    assert all(form == form.lower() for form in probabilities)


def test_without_a_table_for_the_running_model_every_word_is_rare(
    analyser: Analyser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(word_probabilities, "model_version", lambda: "9.9.9")
    form_probabilities.cache_clear()
    try:
        assert rarities(["돈"], form_probabilities(analyser.kiwi)) == {"돈": 1.0}
        assert "9.9.9" in caplog.text
    finally:
        form_probabilities.cache_clear()


@given(_SHARES, _SHARES, _SHARES, _SHARES, st.floats(0, 1))
def test_more_evidence_never_gives_the_dense_leg_more_weight(
    share: float, more: float, rarest: float, rarer: float, alpha: float
) -> None:
    share, more = sorted((share, more))
    rarest, rarer = sorted((rarest, rarer))
    assert alpha <= adapted(alpha, more, rarer) <= adapted(alpha, share, rarest) <= 1


@pytest.mark.parametrize(("rarest", "enough"), [(1.0, 0.15), (0.5, 0.27), (0.0, 0.39)])
def test_where_the_words_prove_nothing_and_where_enough(rarest: float, enough: float) -> None:
    assert adapted(0.1, 0.1, rarest) == adapted(0.1, 0.0, rarest) == 1
    assert adapted(0.1, enough, rarest) == adapted(0.1, 1.0, rarest) == pytest.approx(0.1)
    assert adapted(0.1, (0.1 + enough) / 2, rarest) == pytest.approx(0.55)
