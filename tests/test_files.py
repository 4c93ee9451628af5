"""indexers/sources: files, formats, pages and encodings"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexers.sources import formats, pages
from indexers.sources.files import SUFFIXES, LineProblem, Notice, read_articles
from pipeline.cleaning import clean
from pipeline.documents import MAX_BODY_BYTES, Article
from pipeline.errors import UnreadableSource

_TEXT = "전세 대출의 금리가 내려갑니다. 쉽게 설명해 드립니다."
_ROW = {"id": "가:1", "title": "금리 인하", "body": _TEXT}
_FULL: dict[str, Any] = {
    **_ROW,
    "format": "markdown",
    "url": "https://example.com/1",
    "category": "대출",
    "series": "쉬운 금융",
    "tags": ["금리", "전세"],
    "source": "편집부",
    "published_at": "2026-03-02T09:00:00+09:00",
    "updated_at": "2026-03-03T09:00:00+09:00",
    "quality": 0.5,
    "visible": False,
}


def _read(*paths: Path) -> tuple[list[Article], list[LineProblem], list[Notice]]:
    found = list(read_articles(paths))
    return (
        [item for item in found if isinstance(item, Article)],
        [item for item in found if isinstance(item, LineProblem)],
        [item for item in found if isinstance(item, Notice)],
    )


def _jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: list[dict[str, Any]]) -> str:
    table = pd.DataFrame(rows)
    if "tags" in table:
        table["tags"] = table["tags"].map(";".join)
    return str(table.to_csv(index=False, quoting=csv.QUOTE_ALL))  # else pandas leaves a lone "\r" unquoted


def _written(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode(encoding) if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def _parquet(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    plain = folder / "table.parquet"
    pd.DataFrame(rows).to_parquet(plain)
    data = plain.read_bytes()
    plain.unlink()
    return _written(folder, name, data)


_WRITERS: dict[str, Callable[[Path, str, list[dict[str, Any]]], Path]] = {
    ".jsonl": lambda folder, suffix, rows: _written(folder, f"a{suffix}", _jsonl(rows)),
    ".csv": lambda folder, suffix, rows: _written(folder, f"a{suffix}", _csv(rows)),
    ".parquet": lambda folder, suffix, rows: _parquet(folder, f"a{suffix}", rows),
}


@pytest.mark.parametrize("suffix", [kind + packed for kind in _WRITERS for packed in ("", ".gz")])
def test_every_table_gives_the_articles_that_were_written(tmp_path: Path, suffix: str) -> None:
    rows = [{**_FULL, "id": f"가:{number}"} for number in range(1_200)]  # more than one batch
    path = _WRITERS[suffix.removesuffix(".gz")](tmp_path, suffix, rows)
    assert list(read_articles([path])) == [Article.from_mapping(row) for row in rows]


@settings(deadline=None)  # the first example imports pandas
@given(
    rows=st.lists(st.tuples(st.text("가나 \n\",'\r;|&<nN", max_size=20), st.text('다\n",NA', max_size=5)), min_size=1)
)
def test_csv_cells_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    written = [{"id": f"가{n}", "body": f"글{body}", "title": title} for n, (body, title) in enumerate(rows)]
    path = _written(tmp_path_factory.mktemp("csv"), "a.csv", _csv(written))
    assert list(read_articles([path])) == [Article.from_mapping(row) for row in written]


@pytest.mark.parametrize("word", ["NA", "null", "NaN", "None", "001"])
def test_csv_has_no_magic_words(tmp_path: Path, word: str) -> None:
    path = _written(tmp_path, "a.csv", f"id,title,body\n{word},{word},{word}\n")
    (article,) = _read(path)[0]
    assert (article.id, article.title, article.body) == (word, word, word)


def test_empty_cells_are_missing_fields(tmp_path: Path) -> None:
    path = _written(
        tmp_path, "a.csv", "\ufeffid,title,body,url,tags,quality,visible\n1,제목,,,,,\n\n2,제목,글,,가;나, 0.5,No\n"
    )
    articles, problems, _ = _read(path)
    assert not problems
    assert articles == [
        Article(id="1", title="제목", body=""),
        Article(id="2", title="제목", body="글", tags=("가", "나"), quality=0.5, visible=False),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.md", "a.html", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["cp949", "euc-kr", "utf-8-sig"])
def test_korean_encodings_are_told_by_their_bytes(tmp_path: Path, name: str, encoding: str) -> None:
    page = f"<meta charset=utf-8><title>금리 인하</title><p>{_TEXT}"
    content = {"jsonl": _jsonl([_ROW]), "csv": _csv([_ROW]), "md": f"# 금리 인하\n\n{_TEXT}\n", "html": page}[
        name.split(".")[1]
    ]
    (article,) = _read(_written(tmp_path, name, content, encoding))[0]
    assert article.title == "금리 인하"
    assert _TEXT in article.body


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.md", "a.html"])
@pytest.mark.parametrize("encoding", ["utf-16", "shift-jis", "gb18030"])
def test_other_encodings_are_refused_by_name_with_the_cure(tmp_path: Path, name: str, encoding: str) -> None:
    text = "貸款利率下降了，请注意。" if encoding == "gb18030" else "金利が下がりました。くわしく説明します。"
    path = _written(tmp_path, name, f'{{"id": "1", "body": "{text}"}}'.replace("貸", "贷"), encoding)
    with pytest.raises(UnreadableSource, match=r"byte [\d,]+.*save it as UTF-8") as caught:
        _read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("at", [100, 1 << 20, (1 << 20) - 1, (1 << 21) + 1])
def test_the_bad_byte_is_told_by_its_place_in_the_file(tmp_path: Path, at: int) -> None:
    content = bytearray("가".encode() * 1_000_000)
    at -= at % 3  # where a character begins
    content[at] = 0xFF
    with pytest.raises(UnreadableSource, match=f"byte {at:,}\\)"):
        _read(_written(tmp_path, "a.md", bytes(content)))


_BAD_LINES = {
    "not JSON": b'{"id": "1", "body": ',
    "not JSON at all": b"nonsense",
    "a lone surrogate": b'{"id": "1", "body": "\\ud800"}',
    "not an object": b"[1, 2]",
    "a missing id": b'{"title": "a", "body": "b"}',
    "an id with #": b'{"id": "a#b", "body": "b"}',
    "an id with /": b'{"id": "a/b", "body": "b"}',
    "an unknown field": b'{"id": "1", "body": "b", "text": "c"}',
    "a body that is no text": b'{"id": "1", "body": 3}',
    "no body": b'{"id": "1", "title": "a"}',
    "an empty body and title": b'{"id": "1", "body": " "}',
    "a body over 5 MB": b'{"id": "1", "body": "' + b"a" * (MAX_BODY_BYTES + 1) + b'"}',
    "a date without an offset": b'{"id": "1", "body": "b", "published_at": "2026-03-02T09:00:00"}',
    "not UTF-8": b'{"id": "1", "body": "\xff"}',
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("bad", _BAD_LINES.values(), ids=_BAD_LINES.keys())
@pytest.mark.parametrize("line_break", [b"\n", b"\r\n"])
def test_a_bad_line_is_told_by_number_and_the_rest_is_read(tmp_path: Path, bad: bytes, line_break: bytes) -> None:
    good = [json.dumps({**_ROW, "id": str(n)}, ensure_ascii=False).encode() for n in range(2)]
    path = _written(tmp_path, "a.jsonl", line_break.join([good[0], b" ", bad, good[1]]))
    articles, problems, notices = _read(path)
    assert [article.id for article in articles] == ["0", "1"]
    assert [(problem.path, problem.line) for problem in problems] == [(path, 3)]
    assert problems[0].problem
    assert str(problems[0]).startswith(f"{path}, line 3: ")
    assert not notices


def test_a_line_too_long_to_hold_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MAX_LINE_BYTES", 200)
    rows = [_ROW, {**_ROW, "id": "2", "body": "가" * 300}, {**_ROW, "id": "3"}]
    articles, problems, _ = _read(_written(tmp_path, "a.jsonl", _jsonl(rows)))
    assert [article.id for article in articles] == ["가:1", "3"]
    assert [problem.line for problem in problems] == [2]


def test_bad_csv_rows_are_told_as_a_spreadsheet_counts_them(tmp_path: Path) -> None:
    rows = [
        "id,body,quality",
        '1,"두\n줄",',
        "2,너무,0,많다",
        "3,글,높음",
        "4,글,",
        ",글,",
        "5,또,많,다",
        '6,"안 닫힘,',
        "7,글,",
    ]
    articles, problems, _ = _read(_written(tmp_path, "a.csv", "\n".join(rows)))
    assert [(article.id, article.body) for article in articles] == [("1", "두\n줄"), ("4", "글")]
    assert [problem.line for problem in problems] == [3, 4, 6, 7, 8]
    assert "'높음'" in problems[1].problem
    assert "never closed" in problems[4].problem


@pytest.mark.parametrize("before", [0, 1, 499, 500, 501, 1_003])
def test_rows_before_an_unclosed_quote_are_all_read(tmp_path: Path, before: int) -> None:
    lines = ["id,body"] + [f"{n},글" if n % 7 else f"{n},너무,많다" for n in range(1, before + 1)] + ['끝,"열림', "x,y"]
    articles, problems, _ = _read(_written(tmp_path, "a.csv", "\n".join(lines)))
    assert [int(article.id) for article in articles] == [n for n in range(1, before + 1) if n % 7]
    assert [problem.line for problem in problems] == [*(n + 1 for n in range(1, before + 1) if n % 7 == 0), before + 2]


@pytest.mark.parametrize(
    ("suffix", "rows"),
    [
        (suffix, rows)
        for suffix in (".csv", ".parquet")
        for rows in ([{"title": "a", "body": "b"}], [{"id": "a", "text": "b"}])
    ],
)
def test_a_table_without_the_needed_columns_is_refused(tmp_path: Path, suffix: str, rows: list[dict[str, Any]]) -> None:
    path = _WRITERS[suffix](tmp_path, suffix, rows)
    with pytest.raises(UnreadableSource, match=r"a\.(csv|parquet) has no column '(id|body)'"):
        _read(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_of_no_article_are_left_out_and_told(tmp_path: Path, suffix: str) -> None:
    articles, problems, notices = _read(_WRITERS[suffix](tmp_path, suffix, [{**_ROW, "조회수": "3"}]))
    assert articles == [Article.from_mapping(_ROW)]
    assert not problems
    assert "'조회수'" in notices[0].text


def test_parquet_values_become_fields(tmp_path: Path) -> None:
    moment = pd.Timestamp("2026-03-02T09:00:00+09:00")
    rows: list[dict[str, Any]] = [
        {"id": 7, "title": None, "body": "글", "published_at": moment, "quality": 0.5, "visible": True, "tags": ["가"]},
        {
            "id": 8,
            "title": "제목",
            "body": None,
            "published_at": None,
            "quality": float("nan"),
            "visible": None,
            "tags": None,
        },
    ]
    articles, problems, _ = _read(_parquet(tmp_path, "a.parquet", rows))
    assert not problems
    first = Article(id="7", title="", body="글", published_at=moment.to_pydatetime(), quality=0.5, tags=("가",))
    assert articles == [first, Article(id="8", title="제목", body="")]


def test_a_parquet_date_without_an_offset_is_told_by_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**_ROW, "published_at": pd.Timestamp("2026-03-02T09:00:00")}]
    _, problems, _ = _read(_parquet(tmp_path, "a.parquet", rows))
    assert [problem.line for problem in problems] == [1]
    assert "offset" in problems[0].problem


@pytest.mark.parametrize("suffix", list(_WRITERS))
def test_the_last_valid_line_of_an_id_wins_and_it_is_said(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {**_ROW, "id": "가", "body": "첫째", "updated_at": "2026-03-02T09:00:00+09:00"},
        {**_ROW, "id": "나", "body": "다른 글", "updated_at": ""},
        {**_ROW, "id": "\u1100\u1161", "body": "둘째", "updated_at": "2020-03-02T09:00:00+09:00"},
        {**_ROW, "id": "가", "body": "날짜가 틀린 셋째", "updated_at": "2026-03-02"},
    ]
    rows = [{name: value for name, value in row.items() if value or suffix != ".jsonl"} for row in rows]
    if suffix == ".parquet":
        rows[1]["updated_at"] = None
    articles, problems, notices = _read(_WRITERS[suffix](tmp_path, suffix, rows))
    header = 1 if suffix == ".csv" else 0
    assert [article.body for article in articles] == ["다른 글", "둘째"]
    assert [problem.line for problem in problems] == [4 + header]
    assert [notice.line for notice in notices] == [1 + header]
    assert f"line {3 + header}" in notices[0].text


def test_front_matter_gives_the_fields(tmp_path: Path) -> None:
    front = """title: "금리: 인하"
id: 'rate-1'
# 주석
tags: [금리, "전세"]
category: 대출
quality: 0.9
visible: false
published_at: 2026-03-02T09:00:00+09:00
layout: post
series:
"""
    articles, problems, notices = _read(_written(tmp_path, "a.md", f"---\n{front}---\n# 다른 제목\n\n본문\n"))
    assert not problems
    assert [(a.id, a.title, a.tags, a.category, a.quality, a.visible) for a in articles] == [
        ("rate-1", "금리: 인하", ("금리", "전세"), "대출", 0.9, False)
    ]
    assert articles[0].body == "# 다른 제목\n\n본문\n"
    assert articles[0].published_at is not None
    assert "'layout'" in notices[0].text


def test_a_list_below_its_key_is_read(tmp_path: Path) -> None:
    path = _written(tmp_path, "a.md", "---\r\ntags:\r\n  - 금리\r\n  - '전세'\r\n---\r\n본문")
    assert _read(path)[0] == [Article(id="a", title="a", body="본문", format="markdown", tags=("금리", "전세"))]


def test_a_markdown_title_is_its_first_heading(tmp_path: Path) -> None:
    path = _written(tmp_path, "전세.md.gz", "```\n# 주석\n```\n\n## 전세 *대출*\n\n본문\n")
    assert [(article.id, article.title) for article in _read(path)[0]] == [("전세", "전세 대출")]


def test_a_page_gives_its_main_content(tmp_path: Path) -> None:
    page = f"""<!doctype html><html><head><title>금리 | 여울</title><link rel=canonical href="https://example.com/1">
      <meta property="article:published_time" content="2026-03-02T09:00:00+09:00"></head><body><h1>여울</h1><nav>메뉴</nav>
      <main><h1>금리 &amp; <b>전세</b></h1><p>{_TEXT}</p></main><footer>회사 주소</footer></body></html>"""
    (article,) = _read(_written(tmp_path, "rate.htm", page))[0]
    assert (article.id, article.title, article.format, article.url) == (
        "rate",
        "금리 & 전세",
        "html",
        "https://example.com/1",
    )
    assert article.published_at is not None
    assert clean(article.body, "html").text == f"금리 & 전세\n{_TEXT}"


@pytest.mark.parametrize(
    ("page", "title", "text"),
    [
        (f"<title> 창\n제목 </title><h1>큰 제목</h1><p>{_TEXT}<footer>주소</footer>", "창 제목", f"큰 제목\n{_TEXT}"),
        (f"<h1>큰 제목</h1><p>{_TEXT}", "큰 제목", f"큰 제목\n{_TEXT}"),
        (f"<p>{_TEXT}", "a", _TEXT),
        (f"<title>창</title><article><h1>글</h1>{_TEXT}</article><aside>광고</aside>", "글", f"글\n{_TEXT}"),
        ("<div>" * 10_000 + _TEXT, "a", _TEXT),
        ("<title>창</title><frameset><frame src=x></frameset>", "창", ""),
    ],
)
def test_an_unmarked_page_is_read_too(tmp_path: Path, page: str, title: str, text: str) -> None:
    (article,) = _read(_written(tmp_path, "a.html", page))[0]
    assert (article.title, clean(article.body, "html").text) == (title, text)


def test_a_page_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MAX_PAGE_CHARS", 100)
    _, problems, _ = _read(_written(tmp_path, "a.html", "가" * 101))
    assert [problem.line for problem in problems] == [None]


def test_a_folder_is_read_by_name_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.md", "a/1#2.html", ".git/x.md", "a/.x.md", "c.md.gz", "d.txt"):
        _written(tmp_path, name, f"본문 {name}")
    articles, problems, notices = _read(tmp_path)
    assert [article.id for article in articles] == ["b", "c", "a:1:2", "a:z"]
    assert not problems
    assert not notices


def test_two_pages_of_one_id_are_told(tmp_path: Path) -> None:
    first, second = _written(tmp_path, "a.html", "하나"), _written(tmp_path, "a.md", "둘")
    articles, _, notices = _read(tmp_path)
    assert [article.body for article in articles] == ["하나", "둘"]
    assert [notice.path for notice in notices] == [second]
    assert str(first) in notices[0].text


@pytest.mark.parametrize("suffix", [kind + packed for kind in SUFFIXES for packed in ("", ".gz") if kind != ".parquet"])
def test_an_empty_file_is_told_and_no_crash(tmp_path: Path, suffix: str) -> None:
    for content in ("", "\n \n", "\ufeff"):
        if suffix.startswith(".csv") and content.strip(" \n"):
            continue  # a row without names is refused: below
        path = _written(tmp_path, f"a{suffix}", content)
        try:
            articles, problems, _ = _read(path)
        except UnreadableSource as error:
            assert "has no column 'id'" in str(error)  # noqa: PT017 - a .csv of blanks has a first row
            continue
        assert not articles
        assert [(problem.path, problem.line) for problem in problems] == [(path, None)]
        assert "empty" in problems[0].problem


def test_unreadable_paths_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = _written(tmp_path, "a.md", "본문")
    (tmp_path / "empty").mkdir()
    for bad in (
        tmp_path / "missing.md",
        _written(tmp_path, "a.txt", "x"),
        _written(tmp_path, "a.gz", "x"),
        tmp_path / "empty",
    ):
        with pytest.raises(UnreadableSource, match="give files or folders of") as caught:
            next(read_articles([good, bad]))
        assert str(bad) in str(caught.value)


_BROKEN = {
    "a.jsonl.gz": b"no gzip",
    "b.csv.gz": gzip.compress(_TEXT.encode() * 100)[:-20],
    "c.md.gz": gzip.compress(bytes(range(256)) * 100)[:50] + b"\0" * 50,
    "d.parquet": b"PAR1 no parquet",
    "e.parquet.gz": b"no gzip",
    "f.parquet": b"",
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_broken_file_is_refused_by_name_and_leaves_the_folder_readable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_BROKEN[name])
    with pytest.raises(UnreadableSource, match=name):
        _read(path)
    _written(tmp_path, "z.md", "본문")
    articles, problems, _ = _read(tmp_path)
    assert [article.id for article in articles] == ["z"]
    assert [problem.path for problem in problems] == [path]
