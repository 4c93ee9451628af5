"""Terms: compounds and parts, what a word alone shares with the word in a sentence, the user's dictionary."""

from __future__ import annotations

import unicodedata
from importlib import resources
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kiwipiepy import Token

from pipeline.cleaning import clean
from pipeline.errors import InvalidSetting
from pipeline.korean.morphemes import Analyser, terms_of

_KOREAN = st.text(
    st.sampled_from("가나다라마바사아자차카타파하 은는이을를에서대출금리한도그총2026 aBc.,!😀\n"), max_size=60
)
_NOUN_SENTENCES = (
    "{}{을} 찾았다.",
    "우리는 {}에서 만났다.",
    "{}{은} 어떻게 되나요?",
    "요즘 {} 때문에 걱정이에요.",
    "{}{이} 늘었어요.",
)
_WORDS = 200  # of each kind, the most frequent of the samples
_MISSED_NOUNS = (
    0.01  # of (noun, sentence) pairs: Kiwi cuts a few nouns otherwise in each sentence (해지만 as 해 + 지만)
)
_MISSED_VERBS = 0.03


def _forms(analyser: Analyser, text: str) -> set[str]:
    (tokens,) = analyser.analyse([text])
    return {form for form, _, _ in terms_of(tokens)}


def _shares_a_term(analyser: Analyser, word: str, sentence: str) -> bool:
    """Whether the word as a query has a term of the word as it stands in the sentence."""
    start = sentence.index(word)
    (tokens,) = analyser.analyse([sentence])
    there = {form for form, first, end in terms_of(tokens) if first < start + len(word) and end > start}
    return bool(there & analyser.query_terms(word).weights.keys())


def _with_particles(frame: str, noun: str) -> str:
    final = (ord(noun[-1]) - ord("가")) % 28 > 0
    return frame.format(noun, 을="을" if final else "를", 은="은" if final else "는", 이="이" if final else "가")


@pytest.fixture(scope="module")
def sample_tokens(analyser: Analyser) -> list[tuple[str, list[Token]]]:
    """(clean body, its morphemes) of each sample article."""
    lines = resources.files("pipeline.samples").joinpath("articles.jsonl").read_bytes().splitlines()
    articles = [orjson.loads(line) for line in lines]
    bodies = [clean(article["body"], article.get("format", "text")).text for article in articles]
    return list(zip(bodies, analyser.analyse(bodies), strict=True))


def _most_frequent(samples: list[tuple[str, list[Token]]], *tags: str) -> list[str]:
    counts: dict[str, int] = {}
    for _, tokens in samples:
        for token in tokens:
            if token.tag in tags and len(token.form) > 1:
                counts[token.form] = counts.get(token.form, 0) + 1
    return sorted(counts, key=lambda form: (-counts[form], form))[:_WORDS]


def test_a_compound_is_a_term_and_so_are_its_parts(analyser: Analyser) -> None:
    assert _forms(analyser, "전세자금대출은 은행에서 신청해요.") >= {
        "전세자금대출",
        "전세",
        "자금",
        "대출",
        "은행",
        "신청",
    }
    assert _forms(analyser, "ISA계좌를 만들었다") >= {"isa계좌", "isa", "계좌", "만들"}


def test_a_plural_is_no_compound(analyser: Analyser) -> None:
    assert _forms(analyser, "학생들이 모였다") == {"학생", "들", "모이"}


def test_an_amount_is_no_compound_and_a_determiner_without_a_space_is_half_of_one(analyser: Analyser) -> None:
    assert _forms(analyser, "대출은 3년 동안 500만원까지예요.").isdisjoint({"3년", "만원", "500만원"})
    assert "총급여" in _forms(analyser, "총급여가 7천만 원을 넘어요.")
    assert "영업일" in _forms(analyser, "신청하면 3영업일에 끝나요.")


def test_latin_numbers_hanja_and_unknown_words_are_terms_in_lower_case(analyser: Analyser) -> None:
    forms = _forms(analyser, "ZZTOP 뷁뚫은 2026년에 大出 QR코드로 S&P 500을 샀다.")
    assert forms >= {"zztop", "2026", "大出", "qr", "코드", "500"}
    assert any("뷁뚫" in form for form in forms)
    assert all(form == form.lower() and " " not in form for form in forms)


@pytest.mark.parametrize("word", ["기차", "아이스크림", "미성년자", "한도", "알림", "이체", "해지", "얼마"])
@pytest.mark.parametrize("frame", _NOUN_SENTENCES)
def test_words_known_to_fail_share_a_term_with_themselves_in_a_sentence(
    analyser: Analyser, word: str, frame: str
) -> None:
    assert _shares_a_term(analyser, word, _with_particles(frame, word))


def test_nouns_alone_share_a_term_with_themselves_in_sentences(
    analyser: Analyser, sample_tokens: list[tuple[str, list[Token]]]
) -> None:
    nouns = _most_frequent(sample_tokens, "NNG", "NNP")
    pairs = [(noun, _with_particles(frame, noun)) for noun in nouns for frame in _NOUN_SENTENCES]
    missed = [pair for pair in pairs if not _shares_a_term(analyser, *pair)]
    assert len(pairs) == _WORDS * len(_NOUN_SENTENCES)
    assert len(missed) <= _MISSED_NOUNS * len(pairs), missed


def test_verbs_in_their_dictionary_form_are_found_in_sentences(
    analyser: Analyser, sample_tokens: list[tuple[str, list[Token]]]
) -> None:
    verbs = _most_frequent(sample_tokens, "VV", "VV-R", "VV-I", "VA", "VA-R", "VA-I")
    missed = [verb for verb in verbs if verb not in analyser.query_terms(f"{verb}다").weights]
    assert len(verbs) >= 150
    assert len(missed) <= _MISSED_VERBS * len(verbs), missed


def test_other_analyses_add_few_terms(analyser: Analyser, sample_tokens: list[tuple[str, list[Token]]]) -> None:
    nouns = _most_frequent(sample_tokens, "NNG", "NNP")
    assert sum(len(analyser.query_terms(noun).weights) for noun in nouns) <= 1.25 * len(nouns)


def test_a_repeated_morpheme_counts_each_time_and_other_readings_count_less(analyser: Analyser) -> None:
    weights = analyser.query_terms("전세대출 전세").weights
    assert weights["전세"] == 2
    assert weights["대출"] == 1
    assert weights["전세대출"] < 1


def test_words_of_questions_count_only_where_nothing_else_is_left(analyser: Analyser) -> None:
    assert analyser.query_terms("한도는 얼마").weights.keys() == {"한도"}
    for question in ("얼마", "얼마예요?", "무엇", "어디", "왜"):
        assert analyser.query_terms(question).weights, question


@settings(max_examples=60, deadline=None)
@given(query=_KOREAN)
def test_any_query_has_positive_weights_and_the_words_of_its_plain_analysis(analyser: Analyser, query: str) -> None:
    weights = analyser.query_terms(query).weights
    assert all(weight > 0 and form and form == form.lower() for form, weight in weights.items())
    assert analyser.query_terms(query).weights == weights


@settings(max_examples=100, deadline=None)
@given(text=_KOREAN)
def test_terms_stand_where_they_say(analyser: Analyser, text: str) -> None:
    (tokens,) = analyser.analyse([text])
    terms = terms_of(tokens)
    assert [start for _, start, _ in terms] == sorted(start for _, start, _ in terms)
    nouns = {(t.start, t.start + t.len) for t in tokens if t.tag.startswith(("NN", "S", "XPN", "MM"))}
    for form, start, end in terms:
        assert 0 <= start <= end <= len(text)  # equal: a morpheme that a contraction has swallowed
        if (start, end) in nouns:
            surface = text[start:end].lower().replace(" ", "")
            # A contraction is written in the syllable of its noun (걸 as 거 and ᆯ), so letters are compared.
            assert unicodedata.normalize("NFD", surface).startswith(unicodedata.normalize("NFD", form))


def test_analysing_many_texts_gives_what_analysing_each_gives(analyser: Analyser) -> None:
    texts = ["대출 금리", "", "이체 한도를 늘렸다. 바로 됐다."] * 20
    together = list(analyser.analyse(texts))
    alone = [next(analyser.analyse([text])) for text in texts]
    assert [terms_of(tokens) for tokens in together] == [terms_of(tokens) for tokens in alone]


def _dictionary(folder: Path, content: str | bytes) -> Path:
    path = folder / "user_words.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_users_dictionary_makes_words_and_another_fingerprint(tmp_path: Path, analyser: Analyser) -> None:
    own = Analyser.open(
        _dictionary(tmp_path, "\ufeff# 상품 이름\r\n\r\n여울모아통장\tNNP\t5\r\n쑥쑥이자\nQ머니\tNNP\t\n")
    )
    assert "통장" in _forms(analyser, "여울모아통장을 열었다")
    assert "통장" not in _forms(own, "여울모아통장을 열었다")
    assert "여울모아통장" in _forms(own, "여울모아통장을 열었다")
    assert own.query_terms("쑥쑥이자").weights == {"쑥쑥이자": 1.0}
    other = Analyser.open(_dictionary(tmp_path, "여울모아통장\tNNP\t6\n"))
    assert len({analyser.fingerprint, own.fingerprint, other.fingerprint}) == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("대출\tNNG\n여울\tNOUN\n", "line 2"),
        ("대출\tNNG\t높게\n", "line 1"),
        ("# 설명\n\n\tNNG\t1\n", "line 3"),
        ("대출\tNNG\tnan\n", "line 1"),
        ("대출\tNNG\t1\t더\n", "line 1"),
        ("대출".encode("cp949"), "UTF-8"),
    ],
)
def test_a_bad_line_of_the_dictionary_is_told_by_number(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(InvalidSetting, match=r"user_words") as caught:
        Analyser.open(_dictionary(tmp_path, content))
    assert told in str(caught.value)


def test_a_missing_dictionary_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="readable UTF-8 file"):
        Analyser.open(tmp_path / "none.tsv")
