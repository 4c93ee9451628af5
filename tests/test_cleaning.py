"""pipeline/cleaning.py and pipeline/markup.py"""

from __future__ import annotations

import html
import time
import unicodedata
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.cleaning import CleanText, clean, clean_title, split_front_matter
from pipeline.documents import Format

_FORMATS: tuple[Format, ...] = get_args(Format)
# What a messy page is made of, so that short examples already mix it
_PIECES = (
    *("금리는", "전세 대출", "\u1112\u1161\u11ab", "👨\u200d👩\u200d👧", "❤\ufe0f", "ì•ˆë…•í•˜ì„¸ìš”", "ì", "•", "ˆ"),
    *("&amp;", "nbsp;", "&nbsp", "&#8203", "&#10;", "&lt", ";", "&", "#38;"),
    *("<p>", "</p>", "<br>", "<li>", "<ul>", "</ul>", "<table>", "<tr>", "<td>", "</table>", "<pre>", "<h2>", "<b"),
    *("\n", "\r\n", "\n\n", "# ", "- ", "| a | b |\n|--|--|\n", "```", "---\n", "    "),
    *("\u200b", "\ufeff", "\xad", "\u3164", "\xa0", "\u3000", "\u2028", "\x85", "\x00", "\x07", "\ud800", "\U000e0041"),
)
_MESSY = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(_PIECES)), max_size=12).map("".join)
_BLANKS = "\t\x1c\x1f\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u2800\u3000\u3164\uffa0"
_BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029")
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff\xad\u180e\u034f\u061c\ufe0f\x00\x08\x7f\x9f\ufffe"
_KOREAN = "“금융소비자보호법” 제19조는 ‘설명의무’를 정한다… ㈜여울은 연 3.5％—㎡당 ①안, ２０２４년 ﬁ Ａ급 ½ · ㆍ ※ → 漢字 café"
_WORDS = st.lists(
    st.sampled_from(["금리", "전세", "대출", "연금", "a<b", "R&D", "세금은", "3.5%"]), min_size=1, max_size=4
).map(" ".join)


def _kinds(result: CleanText) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, result.text[block.start : block.end]) for block in result.blocks]


@pytest.mark.parametrize("form", _FORMATS)
@settings(deadline=None)  # the first example builds the Markdown parser
@given(body=_MESSY)
@example(body="&am\u200bp;nbsp;")
@example(body="&copy\u037e")
def test_clean_text_is_a_fixed_point(form: Format, body: str) -> None:
    text = clean(body, form).text
    assert clean(text).text == text


@pytest.mark.parametrize("form", _FORMATS)
@settings(deadline=None)  # the first example builds the Markdown parser
@given(body=_MESSY)
def test_blocks_and_the_breaks_between_them_are_the_text(form: Format, body: str) -> None:
    result = clean(body, form)
    assert "\n".join(result.text[start:end] for start, end in (block.span for block in result.blocks)) == result.text
    assert all(block.start < block.end for block in result.blocks)
    assert all(after.start == before.end + 1 for before, after in pairwise(result.blocks))


@pytest.mark.parametrize("form", _FORMATS)
@settings(deadline=None)  # the first example builds the Markdown parser
@given(body=_MESSY)
def test_only_plain_spaces_and_visible_characters_remain(form: Format, body: str) -> None:
    text = clean(body, form).text
    assert unicodedata.is_normalized("NFC", text)
    odd = {char for char in text if char != "\n" and unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}}
    blank = {char for char in text if char not in " \n" and char.isspace()}
    assert not odd
    assert not blank
    assert not set(text) & set(_BLANKS + _INVISIBLE)
    assert "  " not in text
    assert all(line == line.strip() and line for line in text.split("\n")) or not text


@pytest.mark.parametrize("form", _FORMATS)
@settings(deadline=None)  # the first example builds the Markdown parser
@given(body=st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)))
def test_hangul_spelt_as_jamo_cleans_to_the_same(form: Format, body: str) -> None:
    assert clean(unicodedata.normalize("NFD", body), form) == clean(body, form)


@pytest.mark.parametrize("blank", _BLANKS)
def test_every_kind_of_blank_is_a_space(blank: str) -> None:
    assert clean(f"금리{blank}인하{blank * 3}발표{blank}").text == "금리 인하 발표"


@pytest.mark.parametrize("line_break", _BREAKS)
def test_every_kind_of_line_break_ends_a_paragraph(line_break: str) -> None:
    assert clean(f"첫 문단{line_break * 2} 둘째 문단{line_break}").text == "첫 문단\n둘째 문단"


@pytest.mark.parametrize("char", _INVISIBLE)
def test_invisible_characters_do_not_split_a_word(char: str) -> None:
    assert clean(f"전세{char}대출").text == "전세대출"


@pytest.mark.parametrize("form", _FORMATS)
def test_well_written_korean_is_left_as_it_is(form: Format) -> None:
    assert clean(_KOREAN, form).text == _KOREAN


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("금리&nbsp;인하", "금리 인하"),
        ("금리&amp;nbsp;인하", "금리 인하"),
        ("금리&amp;amp;nbsp;인하", "금리 인하"),
        ("금리&nbsp인하", "금리 인하"),
        ("금&#8203리", "금리"),
        ("금&#x200B;리", "금리"),
        ("&#44552;&#xB9ac;", "금리"),
        ("R&amp;D &lt;표&gt; &quot;가&quot;", 'R&D <표> "가"'),
        ("R&amp;amp;D", "R&D"),
        ("R&D AT&T a&b;", "R&D AT&T a&b;"),
        ("/view?a=1&copy=2&region=3&lt=4", "/view?a=1&copy=2&region=3&lt=4"),
    ],
)
def test_entities_are_repaired_and_addresses_are_not(broken: str, repaired: str) -> None:
    assert clean(broken).text == repaired
    assert clean_title(broken) == repaired


@pytest.mark.parametrize(
    "text", ["전세 대출 금리를 알려 드립니다.", "안녕하세요", "개인회생 신청 자격과 절차", "“금리” 인하…"]
)
@pytest.mark.parametrize("encoding", ["latin-1", "sloppy-windows-1252"])
def test_hangul_read_in_the_wrong_encoding_is_read_again(text: str, encoding: str) -> None:
    wrong = text.encode().decode(encoding)
    assert clean(f"{wrong}\n{_KOREAN}").text == f"{text}\n{_KOREAN}"
    assert clean_title(wrong) == text


def test_a_page_becomes_its_blocks() -> None:
    page = """<html><head><title>창 제목</title><style>p {}</style></head><body><nav>메뉴</nav>
      <h1 onclick="x()">전세 <b>대출</b></h1><!-- 주석 --><script>alert(1)</script>
      <p title="숨은 말">금리는 <a href="http://x.kr">3.5</a>%다.
      이어진 줄<br>새 줄</p>
      <ul><li>하나<ol><li>안쪽</ol><li><p>둘</p></ul>
      <table><caption>금리표</caption><tr><th>연도<th>금리<td></tr><tr><td>2024<td><p>3%</p>이하</table>
      <pre>if a:\n    b</pre><img alt="금리 그래프" src="a.png"><img alt="a.png"></body></html>"""
    assert _kinds(clean(page, "html")) == [
        ("heading", 1, "전세 대출"),
        ("paragraph", 0, "금리는 3.5%다. 이어진 줄"),
        ("paragraph", 0, "새 줄"),
        ("list_item", 1, "하나"),
        ("list_item", 2, "안쪽"),
        ("list_item", 1, "둘"),
        ("paragraph", 0, "금리표"),
        ("table_row", 0, "연도 | 금리"),
        ("table_row", 0, "2024 | 3% 이하"),
        ("code", 0, "if a:\nb"),
        ("paragraph", 0, "금리 그래프"),
    ]


def test_markdown_becomes_the_same_blocks_as_its_html() -> None:
    markdown = """---
title: 앞글
---
# 전세 *대출*

금리는 [3.5](http://x.kr)%다.
이어진 줄\\
새 줄 &amp;nbsp; ![금리 그래프](a.png)

- 하나
  1. 안쪽
- 둘

| 연도 | 금리 |
|------|------|
| 2024 | 3%   |

```python
if a:
    b
```
<div>HTML <b>조각</b></div>
"""
    page = """<h1>전세 대출</h1><p>금리는 3.5%다. 이어진 줄<br>새 줄 금리 그래프</p><ul><li>하나<ol><li>안쪽</ol><li>둘</ul>
      <table><tr><th>연도<th>금리<tr><td>2024<td>3%</table><pre>if a:\n    b</pre><div>HTML 조각</div>"""
    assert clean(markdown, "markdown") == clean(page, "html")


@given(st.lists(st.tuples(st.sampled_from(["p", "h1", "h3", "li", "pre", "div", "blockquote"]), _WORDS), min_size=1))
def test_text_of_a_page_survives_in_order(elements: list[tuple[str, str]]) -> None:
    page = "".join(f"<{tag}>{html.escape(words)}</{tag}>" for tag, words in elements)
    assert clean(page, "html").text == "\n".join(words for _, words in elements)


@given(st.lists(st.lists(_WORDS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_data_table_is_a_block_a_row(rows: list[list[str]]) -> None:
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    page = "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
    assert _kinds(clean(page, "html")) == [("table_row", 0, " | ".join(row)) for row in rows]


def test_a_table_that_arranges_a_page_is_read_as_paragraphs() -> None:
    page = "<table><tr><td><h2>제목</h2>글<td><table><tr><td>2024<td>3%</table>끝</table>"
    assert _kinds(clean(page, "html")) == [
        ("heading", 2, "제목"),
        ("paragraph", 0, "글"),
        ("table_row", 0, "2024 | 3%"),
        ("paragraph", 0, "끝"),
    ]


def test_what_follows_in_an_unclosed_heading_is_no_heading() -> None:
    assert _kinds(clean("<h2>제목<p>문단 하나<p>문단 둘", "html")) == [
        ("heading", 2, "제목"),
        ("paragraph", 0, "문단 하나"),
        ("paragraph", 0, "문단 둘"),
    ]
    assert _kinds(clean(f"<h2>{'긴 ' * 200}</h2>", "html"))[0][:2] == ("paragraph", 0)


@pytest.mark.parametrize(
    "body",
    [
        "<div>" * 10_000,
        "<ul><li>가" * 10_000,
        "<table><tr><td>가" * 5_000,
        "<b><p>가" * 20_000,
        "</p>" * 10_000,
        "<" * 9_999,
    ],
)
def test_broken_and_deep_html_is_survived(body: str) -> None:
    assert clean(f"<p>처음</p>{body}<p>끝", "html").text.startswith("처음\n")


@pytest.mark.parametrize("body", [">" * 10_000 + "가", "- " * 5_000 + "가", "[" * 5_000, "*a " * 5_000, "`" * 9_999])
def test_broken_and_deep_markdown_is_survived(body: str) -> None:
    assert clean(f"처음\n\n{body}\n", "markdown").text.startswith("처음")


@pytest.mark.parametrize(
    "body", ["&amp;" * 100_000, "&#38;" * 100_000, " \n" * 500_000 + "가", "&" * 500_000, "ì•ˆ" * 50_000]
)
def test_repeated_trouble_takes_linear_time(body: str) -> None:
    began = time.thread_time()
    clean(body)
    assert time.thread_time() - began < 20  # seconds; quadratic would be minutes


@pytest.mark.parametrize("form", _FORMATS)
def test_nothing_becomes_no_block(form: Format) -> None:
    for body in ("", " \n\t\u200b\u3164 ", "\ufeff"):
        assert clean(body, form) == CleanText("", ())


def test_markup_in_plain_text_and_titles_is_text() -> None:
    assert clean("<b>a</b> &lt;p&gt;").text == "<b>a</b> <p>"
    assert clean_title(" <b>금리</b>\u200b\r\n 인하&nbsp;") == "<b>금리</b> 인하"


@pytest.mark.parametrize("rule", ["---\n\n본문\n\n---\n", "---\n본문이다\n---\n", "본문\n---\na: b\n---\n"])
def test_a_rule_is_not_front_matter(rule: str) -> None:
    assert split_front_matter(rule) == ("", rule)


def test_front_matter_is_split_off() -> None:
    assert split_front_matter("\ufeff---\r\n# 주석\r\ntitle: 가\r\n---\r\n본문") == ("# 주석\r\ntitle: 가\r\n", "본문")
