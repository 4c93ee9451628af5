"""indexers/sources: feeds, entries and identity"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from html import escape
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexers.sources.entries import Feed, decoded, feed_of
from indexers.sources.feeds import FeedOptions, FeedSource
from indexers.sources.identity import link_key, placed
from indexers.sources.source import Batch
from pipeline.cleaning import clean
from pipeline.documents import Article, checked_id
from pipeline.errors import InvalidInput, SourceUnavailable, UnreadableSource
from tests.web_server import Handler, Site, page, site_on

_HOME = "https://news.example/"
_BODY = "전세 대출의 금리가 내려갑니다."
_PARAGRAPHS = "".join(f"<p>{_BODY} 문단 {n}에서 쉽게 설명해 드립니다. 읽어 주셔서 고맙습니다.</p>" for n in range(6))
_PAGE = f"<html><body><nav>홈 로그인 메뉴</nav><article><h1>금리</h1>{_PARAGRAPHS}</article></body></html>"


@dataclass
class _Reader:
    """Runs a source as the runner does: every batch is kept, then its cursor, which survives as JSON."""

    site: Site
    options: dict[str, Any] = field(default_factory=dict)
    articles: dict[str, Article] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    cursor: Mapping[str, Any] = field(default_factory=dict)

    def source(self) -> FeedSource:
        options = {"url": self.site.url("/feed"), "allow_private": True, **self.options}
        return FeedSource("뉴스", FeedOptions.from_mapping(options))

    def run(self) -> list[Batch]:
        batches = []
        for batch in self.source().read(self.cursor, self.known):
            assert not batch.removed
            self.known |= batch.renamed
            self.known |= {found.article.id: found.key for found in batch.found}
            self.articles |= {found.article.id: found.article for found in batch.found}
            if batch.cursor is not None:
                self.cursor = orjson.loads(orjson.dumps(batch.cursor))
            batches.append(batch)
        return batches

    def read(self, feed: str | bytes, **headers: str) -> list[Article]:
        """What is new or changed in `feed`."""
        self.site.pages["/feed"] = page(feed, 200, **headers)
        return [found.article for batch in self.run() for found in batch.found]

    def titles(self) -> list[str]:
        return sorted(article.title for article in self.articles.values())


@pytest.fixture
def site() -> Iterator[Site]:
    with site_on() as opened:
        yield opened


@pytest.fixture
def reader(site: Site) -> _Reader:
    return _Reader(site)


def _item(title: str, link: str | None = None, guid: str | None = None, body: str = _BODY, more: str = "") -> str:
    parts = [f"<title>{escape(title)}</title>", f"<description>{escape(body)}</description>", more]
    parts += [f"<link>{escape(link)}</link>"] if link else []
    parts += [f'<guid isPermaLink="false">{escape(guid)}</guid>'] if guid else []
    return f"<item>{''.join(parts)}</item>"


def _rss(*items: str) -> str:
    return f'<rss version="2.0"><channel><title>뉴스</title><link>{_HOME}</link>{"".join(items)}</channel></rss>'


def _problems(batches: list[Batch]) -> list[str]:
    return [problem for batch in batches for problem in batch.problems]


def test_an_rss_item_becomes_an_article(reader: _Reader) -> None:
    dates = "<pubDate>Mon, 02 Mar 2026 09:00:00 +0900</pubDate><category>금리</category><category>전세</category>"
    reader.options = {"category": "경제"}
    (article,) = reader.read(_rss(_item("금리 &amp; <b>전세</b>", f"{_HOME}1?a=1&b=2", "g1", f"<p>{_BODY}</p>", dates)))
    day = datetime(2026, 3, 2, tzinfo=UTC)
    assert (article.title, article.body, article.format) == ("금리 & 전세", f"<p>{_BODY}</p>", "html")
    assert (article.url, article.tags) == (f"{_HOME}1?a=1&b=2", ("금리", "전세"))
    assert (article.category, article.source) == ("경제", "뉴스")
    assert (article.published_at, article.updated_at) == (day, day)
    assert re.fullmatch("뉴스:[0-9a-f]{20}", checked_id(article.id))


def test_an_atom_entry_becomes_an_article(reader: _Reader) -> None:
    (article,) = reader.read(
        f"""<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"><title>뉴스</title><link href="{_HOME}"/>
        <entry><id>urn:1</id><title type="text">1 &lt; 2</title><link href="/a"/><category term="x" label="금리"/>
        <updated>2026-03-03T09:00:00+09:00</updated><published>2026-03-02T00:00:00</published><summary>짧게</summary>
        <content type="text">{_BODY} 1 &lt; 2 &lt;b&gt;</content></entry></feed>"""
    )
    assert (article.title, article.body, article.format) == ("1 < 2", f"{_BODY} 1 < 2 <b>", "text")
    assert (article.url, article.tags) == (reader.site.url("/a"), ("금리",))
    assert article.published_at == datetime(2026, 3, 2, tzinfo=UTC)  # without an offset it is read as UTC
    assert article.updated_at == datetime(2026, 3, 3, tzinfo=UTC)


def test_an_rdf_item_becomes_an_article(reader: _Reader) -> None:
    (article,) = reader.read(
        f"""<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/"
        xmlns:dc="http://purl.org/dc/elements/1.1/"><channel rdf:about="{_HOME}"><title>뉴스</title>
        <items><rdf:Seq><rdf:li rdf:resource="{_HOME}1"/></rdf:Seq></items></channel>
        <item rdf:about="{_HOME}1"><title>금리</title><link>{_HOME}1</link><description>{_BODY}</description>
        <dc:date>2026-03-02T09:00:00+09:00</dc:date></item></rdf:RDF>"""
    )
    assert (article.title, article.url, article.body) == ("금리", f"{_HOME}1", _BODY)
    assert article.updated_at == datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize("content_type", ["", "text/xml", "text/xml; charset=ISO-8859-1", "text/html; charset=euc-kr"])
@pytest.mark.parametrize("declaration", ['<?xml version="1.0" encoding="EUC-KR"?>', ""])
def test_a_korean_feed_in_euc_kr_is_read(reader: _Reader, declaration: str, content_type: str) -> None:
    (article,) = reader.read(
        (declaration + _rss(_item("전세 금리 뷁", f"{_HOME}1"))).encode("cp949"), Content_Type=content_type
    )
    assert (article.title, article.body) == ("전세 금리 뷁", _BODY)


def test_a_feed_in_latin_1_is_read(reader: _Reader) -> None:
    feed = '<?xml version="1.0" encoding="iso-8859-1"?>' + _rss(_item("Café “à Séoul”", f"{_HOME}1", body="Été"))
    (article,) = reader.read(feed.replace("뉴스", "Le Monde").encode("cp1252"))
    assert article.title == "Café “à Séoul”"


def test_a_feed_in_utf_8_that_calls_itself_euc_kr_is_read(reader: _Reader) -> None:
    (article,) = reader.read('<?xml version="1.0" encoding="euc-kr"?>' + _rss(_item("전세 금리", f"{_HOME}1")))
    assert article.title == "전세 금리"


def test_a_feed_in_utf_16_is_read(reader: _Reader) -> None:
    (article,) = reader.read(
        ('<?xml version="1.0" encoding="utf-16"?>' + _rss(_item("전세", f"{_HOME}1"))).encode("utf-16")
    )
    assert article.title == "전세"


def test_one_cut_character_costs_one_character(reader: _Reader) -> None:
    broken = _rss(_item("금리 Δ", f"{_HOME}1")).encode().replace("Δ".encode(), b"\xea\xb0")
    reader.site.pages["/feed"] = page(broken, ETag='"a"')
    assert "not all of it is utf-8" in _problems(reader.run())[0]
    assert reader.titles() == ["금리 \ufffd"]
    assert "etag" not in reader.cursor


@given(
    st.text(max_size=50), st.sampled_from(["", "text/xml; charset=zip", "text/xml; charset=idna", "x; charset=utf-16"])
)
def test_text_in_utf_8_is_read_whatever_is_declared(text: str, content_type: str) -> None:
    assert decoded(text.encode(), content_type) == (text.removeprefix("\ufeff"), None)


@given(
    st.binary(max_size=80),
    st.sampled_from(["", "a; charset=cp949", "a; charset=hex", "a; charset=utf-8", "a; charset=u16"]),
)
def test_every_bytes_decode_to_text(content: bytes, content_type: str) -> None:
    assert isinstance(decoded(content, content_type)[0], str)


def test_entities_of_html_and_control_characters_are_no_damage(reader: _Reader) -> None:
    reader.site.pages["/feed"] = page(_rss("<item><title>금리&nbsp;&hellip;\x08 R&amp;D</title></item>"), ETag='"a"')
    assert _problems(reader.run()) == []
    assert reader.titles() == ["금리 … R&D"]


def test_an_entry_is_yielded_once_and_again_when_it_changed(reader: _Reader) -> None:
    first, second = _item("하나", f"{_HOME}1", "g1"), _item("둘", f"{_HOME}2", "g2")
    assert len(reader.read(_rss(first, second))) == 2
    assert reader.read(_rss(first, second)) == []
    (changed,) = reader.read(_rss(_item("하나", f"{_HOME}1", "g1", "고친 글"), second))
    assert (changed.body, len(reader.articles)) == ("고친 글", 2)


def test_what_falls_off_the_end_of_the_feed_stays(reader: _Reader) -> None:
    reader.read(_rss(_item("하나", f"{_HOME}1", "g1")))
    reader.read(_rss(_item("둘", f"{_HOME}2", "g2")))
    assert reader.titles() == ["둘", "하나"]  # `run` sees that nothing was removed
    assert reader.read(_rss(_item("하나", f"{_HOME}1", "g1"))) == []


def test_an_unchanged_feed_is_not_read(reader: _Reader) -> None:
    modified = "Mon, 02 Mar 2026 00:00:00 GMT"
    reader.read(_rss(_item("하나", f"{_HOME}1")), ETag='"a"', Last_Modified=modified)
    before = reader.cursor

    def not_modified(handler: Handler) -> None:
        asked = handler.headers
        assert (asked["If-None-Match"], asked["If-Modified-Since"]) == ('"a"', modified)
        handler.reply(304)

    reader.site.pages["/feed"] = not_modified
    assert reader.run() == []
    assert reader.cursor == before


@pytest.mark.parametrize("status", [404, 500])
def test_a_feed_that_fails_leaves_the_cursor_where_it_was(reader: _Reader, status: int) -> None:
    reader.read(_rss(_item("하나", f"{_HOME}1")), ETag='"a"')
    before = reader.cursor
    reader.site.pages["/feed"] = page("", status)
    with pytest.raises(SourceUnavailable, match=f"it answers {status}"):
        reader.run()
    assert reader.cursor == before


def test_an_entry_without_id_is_known_by_its_link(reader: _Reader) -> None:
    (before,) = reader.read(_rss(_item("하나", f"{_HOME}1")))
    (after,) = reader.read(_rss(_item("하나 (고침)", f"{_HOME}1")))
    assert after.id == before.id


def test_entries_without_id_and_link_are_known_by_title_and_date(reader: _Reader) -> None:
    items = [_item("하나"), _item("둘"), _item("하나", more="<pubDate>Mon, 02 Mar 2026 09:00:00 GMT</pubDate>")]
    assert len({article.id for article in reader.read(_rss(*items))}) == 3
    assert reader.read(_rss(*reversed(items))) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("http://news.example/?p=1", "https://news.example/?p=1"), ("post-1", "tag:news.example,2026:1"), ("1", "1?v=2")],
)
def test_new_ids_for_old_links_bring_no_article_twice(reader: _Reader, before: str, after: str) -> None:
    reader.read(_rss(_item("하나", f"{_HOME}1", before), _item("둘", f"{_HOME}2", "g2")))
    assert reader.read(_rss(_item("하나", f"{_HOME}1", after), _item("둘", f"{_HOME}2", "g2"))) == []
    (changed,) = reader.read(_rss(_item("하나 (고침)", f"{_HOME}1", after)))
    assert reader.titles() == ["둘", "하나 (고침)"]
    assert changed.id in reader.known


def test_a_site_that_moves_to_https_brings_no_article_twice(reader: _Reader) -> None:
    old, new = "http://www.news.example/1", "https://news.example/1/?utm_source=rss"
    reader.read(_rss(_item("하나", old, old)))
    reader.read(_rss(_item("하나", new, new)))
    assert [article.url for article in reader.articles.values()] == [new]


def test_a_new_link_for_an_old_id_is_the_same_article(reader: _Reader) -> None:
    (before,) = reader.read(_rss(_item("하나", f"{_HOME}old", "g1")))
    (after,) = reader.read(_rss(_item("하나", f"{_HOME}new", "g1")))
    assert (after.id, after.url) == (before.id, f"{_HOME}new")
    assert reader.read(_rss(_item("하나", f"{_HOME}new", "g2"))) == []


def test_entries_with_one_link_and_two_ids_are_two_articles(reader: _Reader) -> None:
    first, second = _item("하나", f"{_HOME}live", "g1"), _item("둘", f"{_HOME}live", "g2")
    assert len({article.id for article in reader.read(_rss(first, second))}) == 2
    assert reader.read(_rss(second)) == []
    reader.read(_rss(_item("셋", f"{_HOME}live", "g3")))
    assert reader.titles() == ["둘", "셋", "하나"]


def test_a_link_that_comes_to_be_shared_keeps_its_first_article(reader: _Reader) -> None:
    first, second = _item("하나", f"{_HOME}live", "g1"), _item("둘", f"{_HOME}live", "g2")
    reader.read(_rss(first))
    assert [article.title for article in reader.read(_rss(second, first))] == ["둘"]
    assert sorted(reader.known.values()) == ["id:g1", "id:g2"]  # renamed: the link tells nothing any more
    assert reader.read(_rss(_item("셋", f"{_HOME}live", "g3")))[0].title == "셋"
    assert reader.titles() == ["둘", "셋", "하나"]


def test_the_front_page_of_the_site_is_nobody_s_link(reader: _Reader) -> None:
    reader.read(_rss(_item("하나", _HOME, "g1")))
    reader.read(_rss(_item("둘", _HOME, "g2")))
    assert reader.titles() == ["둘", "하나"]


def test_ids_that_count_from_the_top_are_seen_through(reader: _Reader) -> None:
    reader.read(_rss(_item("둘", f"{_HOME}2", "1"), _item("하나", f"{_HOME}1", "2")))
    three = _rss(_item("셋", f"{_HOME}3", "1"), _item("둘", f"{_HOME}2", "2"), _item("하나", f"{_HOME}1", "3"))
    assert [article.title for article in reader.read(three)] == ["셋"]
    assert reader.read(three) == []
    assert reader.titles() == ["둘", "셋", "하나"]


def test_one_id_for_all_entries_tells_nothing(reader: _Reader) -> None:
    items = [_item("하나", f"{_HOME}1", "same"), _item("둘", f"{_HOME}2", "same")]
    assert len({article.id for article in reader.read(_rss(*items))}) == 2
    assert reader.read(_rss(*items[:1])) == []


def test_of_an_entry_that_comes_twice_the_first_is_taken(reader: _Reader) -> None:
    reader.read(_rss(_item("새 글", f"{_HOME}1", "g1"), _item("옛 글", f"{_HOME}1", "g1")))
    assert reader.titles() == ["새 글"]


_LINKS = st.sampled_from([None, _HOME, f"{_HOME}a", "http://news.example/a/", f"{_HOME}b", f"{_HOME}b#c"])
_GUIDS = st.sampled_from([None, "g1", "g2", "http://old.example/?p=1", "https://old.example/?p=1"])
_FEEDS = st.lists(st.tuples(st.sampled_from(["하나", "둘"]), _LINKS, _GUIDS), max_size=5)


@given(st.lists(_FEEDS, min_size=1, max_size=4))
def test_no_feed_gives_one_article_to_two_entries_nor_forgets_its_own(feeds: list[Any]) -> None:
    known: dict[str, str] = {}
    for rows in feeds:
        feed = _parsed(_rss(*(_item(title, link, guid) for title, link, guid in rows)))
        found = placed("뉴스", feed, known)
        assert len({one.article_id for one in found}) == len(found)
        known |= {one.article_id: one.key for one in found}
        assert [one.article_id for one in placed("뉴스", feed, known)] == [one.article_id for one in found]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("http://a.kr/x", "https://www.A.kr:443/x/?utm_source=rss&utm_medium=feed", True),
        ("https://a.kr/x?id=1", "https://a.kr/x?id=2", False),
        ("https://a.kr/x#1", "https://a.kr/x#2", False),
        ("https://a.kr/x", "https://a.kr:8443/x", False),
        ("https://a.kr/X", "https://a.kr/x", False),
    ],
)
def test_links_are_the_same_where_they_lead_to_one_page(one: str, other: str, is_same: bool) -> None:
    assert (link_key(one) == link_key(other)) is is_same


def test_a_date_ahead_is_left_out(reader: _Reader) -> None:
    ahead = format_datetime(datetime.now(UTC) + timedelta(hours=9))
    (article,) = reader.read(_rss(_item("하나", f"{_HOME}1", more=f"<pubDate>{ahead}</pubDate>")))
    assert article.updated_at is None
    assert article.published_at is not None


def test_a_changed_entry_that_keeps_its_date_is_a_change_of_now(reader: _Reader) -> None:
    date = "<pubDate>Mon, 02 Mar 2026 09:00:00 GMT</pubDate>"
    reader.read(_rss(_item("하나", f"{_HOME}1", more=date)))
    (changed,) = reader.read(_rss(_item("하나", f"{_HOME}1", body="고친 글", more=date)))
    assert (changed.updated_at, changed.published_at) == (None, datetime(2026, 3, 2, 9, tzinfo=UTC))


@pytest.mark.parametrize("date", ["", "어제", "Mon, 99 Foo 2026", "0000-00-00T00:00:00Z"])
def test_a_date_that_is_none_is_left_out(reader: _Reader, date: str) -> None:
    (article,) = reader.read(_rss(_item("하나", f"{_HOME}1", more=f"<pubDate>{date}</pubDate>")))
    assert (article.published_at, article.updated_at) == (None, None)


@pytest.mark.parametrize("link", ["javascript:alert(1)", "mailto:a@b.kr", "http://[", "ftp://a.kr/"])
def test_a_link_that_is_no_web_address_is_left_out(reader: _Reader, link: str) -> None:
    (article,) = reader.read(_rss(_item("하나", link, "g1")))
    assert article.url is None


def test_an_entry_that_breaks_a_rule_fails_alone_and_is_told_once(reader: _Reader) -> None:
    feed = _rss(_item("긴" * 1_001, f"{_HOME}1"), _item("둘", f"{_HOME}2"), _item("", f"{_HOME}3", body=""))
    reader.site.pages["/feed"] = page(feed)
    problems = _problems(reader.run())
    assert [re.search(r"article field '(\w+)'", problem)[1] for problem in problems] == ["title", "body"]  # type: ignore[index]
    assert reader.titles() == ["둘"]
    assert _problems(reader.run()) == []


def test_more_tags_than_an_article_holds_are_cut(reader: _Reader) -> None:
    tags = "".join(f"<category>{n}</category>" for n in range(60)) + f"<category>{'x' * 501}</category>"
    (article,) = reader.read(_rss(_item("하나", f"{_HOME}1", more=tags)))
    assert article.tags == tuple(map(str, range(50)))


def test_a_feed_cut_in_the_middle_gives_its_whole_entries_and_is_read_anew(reader: _Reader) -> None:
    whole = _rss(_item("하나", f"{_HOME}1"), _item("둘", f"{_HOME}2"))
    reader.site.pages["/feed"] = page(whole[: whole.index("둘") + 1], ETag='"a"')
    (problem,) = _problems(reader.run())
    assert "malformed" in problem
    assert reader.titles() == ["하나"]
    assert "etag" not in reader.cursor
    reader.read(whole, ETag='"b"')
    assert reader.titles() == ["둘", "하나"]
    assert (reader.cursor["etag"], "If-None-Match" in reader.site.requests[-1][1]) == ('"b"', False)


def test_an_entry_without_its_end_tag_is_left_out_in_the_middle_too(reader: _Reader) -> None:
    reader.read(_rss(_item("하나", f"{_HOME}1"), "<item><title>반쪽</title>", _item("둘", f"{_HOME}2")))
    assert reader.titles() == ["둘", "하나"]


def test_tags_inside_a_text_end_no_entry(reader: _Reader) -> None:
    item = f"<item><title>코드</title><link>{_HOME}1</link><description><![CDATA[<item> </item> <item>]]></description></item>"
    reader.read(_rss(item, "<!-- <item> -->", _item("R & D", f"{_HOME}2").replace("&amp;", "&")))
    assert reader.titles() == ["R & D", "코드"]


@pytest.mark.parametrize("feed", [b"", b'{"items": []}', b"<rss><channel>", _rss(_item("반쪽")).encode()[:-50]])
def test_a_feed_without_one_whole_entry_is_unavailable(reader: _Reader, feed: bytes) -> None:
    with pytest.raises(SourceUnavailable, match="there is no whole entry in it"):
        reader.read(feed)


def test_a_malformed_feed_of_some_size_is_not_mended() -> None:
    """feedparser would hold the run for a quarter of a minute."""
    with pytest.raises(SourceUnavailable, match="too large to be mended"):
        _parsed(_rss("<item><title>" + "<a " * 1_100_000))


@pytest.mark.timeout(60)  # 0.1 s; minutes where feedparser looks into the HTML
def test_html_made_to_hurt_takes_no_time() -> None:
    assert len(_parsed(_rss(_item("하나", f"{_HOME}1", body="<!--" * 150_000))).entries) == 1


def test_entities_that_multiply_do_no_harm() -> None:
    levels = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    with pytest.raises(SourceUnavailable, match="no whole entry"):
        _parsed(f'<!DOCTYPE rss [<!ENTITY e0 "ha">{levels}]>' + _rss("<item><title>&e9;</title>"))


def test_an_entity_from_a_file_is_not_read(reader: _Reader) -> None:
    secret = '<!DOCTYPE rss [<!ENTITY secret SYSTEM "file:///etc/hostname">]>'
    reader.read(secret + _rss("<item><title>[&secret;]</title></item>"))
    assert reader.titles() == ["[&secret;]"]


def test_a_feed_without_entries_is_a_feed(reader: _Reader) -> None:
    assert reader.read(_rss(), ETag='"a"') == []
    assert reader.cursor["etag"] == '"a"'


@pytest.mark.parametrize("feed", ["<!DOCTYPE html><html><p>안녕", "<html><body/></html>", "<!-- x --><HTML>"])
def test_a_page_is_no_feed(reader: _Reader, feed: str) -> None:
    with pytest.raises(UnreadableSource, match="is a page and no feed"):
        reader.read(feed)


def test_a_page_that_names_its_feed_is_quoted(reader: _Reader) -> None:
    with pytest.raises(UnreadableSource, match="its feed may be") as caught:
        reader.read("<html><head><link rel='alternate' type='application/rss+xml' href='rss.xml'></head></html>")
    assert caught.value.hint == f"its feed may be {reader.site.url('/rss.xml')}"


def test_xml_that_is_no_feed_is_refused(reader: _Reader) -> None:
    with pytest.raises(UnreadableSource, match="XML, but no feed"):
        reader.read("<svg/>")


def test_a_large_feed_comes_in_batches_that_each_stand_for_themselves(reader: _Reader) -> None:
    reader.site.pages["/feed"] = page(_rss(*(_item(f"{n}", f"{_HOME}{n}") for n in range(120))), ETag='"a"')
    source = reader.source().read({}, {})
    first = next(source)
    assert len(first.found) == 50
    reader.cursor, reader.known = first.cursor or {}, {found.article.id: found.key for found in first.found}
    assert "etag" not in reader.cursor  # the run may end here: the next one must read the rest
    source.close()  # type: ignore[attr-defined]
    assert sum(len(batch.found) for batch in reader.run()) == 70
    assert reader.cursor["etag"] == '"a"'


def test_entries_beyond_the_limit_are_left_out_and_told(reader: _Reader) -> None:
    reader.options = {"max_entries": 2}
    reader.site.pages["/feed"] = page(_rss(*(_item(f"{n}", f"{_HOME}{n}") for n in range(3))))
    assert _problems(reader.run()) == ["the feed holds 3 entries, the first 2 are used"]
    assert reader.titles() == ["0", "1"]


def test_the_cursor_forgets_what_left_the_feed_long_ago(reader: _Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexers.sources.feeds._KEPT_DIGESTS", 2)
    for n in range(5):
        reader.read(_rss(_item(f"{n}", f"{_HOME}{n}")))
    kept = [reader.articles[article_id].title for article_id in reader.cursor["seen"]]
    assert (kept, len(reader.articles)) == (["2", "3", "4"], 5)


def test_the_full_text_is_the_page_s_main_text(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    reader.site.pages["/1"] = page(_PAGE.encode("euc-kr"), Content_Type="text/html; charset=euc-kr")
    (article,) = reader.read(_rss(_item("금리", reader.site.url("/1"))), ETag='"a"')
    text = clean(article.body, article.format).text
    assert "문단 5에서 쉽게" in text
    assert "로그인" not in text
    assert (reader.cursor["etag"], reader.cursor["waiting"]) == ('"a"', {})


def test_pages_are_fetched_only_where_that_is_asked_and_only_for_what_changed(reader: _Reader) -> None:
    reader.site.pages["/1"] = page(_PAGE, Content_Type="text/html")
    feed = _rss(_item("금리", reader.site.url("/1")))
    reader.read(feed)
    assert reader.site.asked("/1") == 0
    reader.options = {"full_text": True}
    reader.read(feed)
    reader.read(feed)
    assert reader.site.asked("/1") == 1


def test_a_page_that_fails_leaves_the_summary_and_is_tried_in_three_runs(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    reader.site.pages["/feed"] = page(_rss(_item("금리", reader.site.url("/1"))), ETag='"a"')
    endings = []
    for _ in range(4):
        problems = _problems(reader.run())
        endings.append([problem.rpartition(", ")[2] for problem in problems])
    assert endings == [["the next run tries again"], ["the next run tries again"], ["3 runs have tried"], []]
    assert [article.body for article in reader.articles.values()] == [_BODY]
    assert (reader.site.asked("/1"), reader.cursor["etag"]) == (3, '"a"')


def test_a_page_that_comes_back_brings_its_text(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    feed = _rss(_item("금리", reader.site.url("/1")))
    (before,) = reader.read(feed, ETag='"a"')
    reader.site.pages["/1"] = page(_PAGE, Content_Type="text/html")
    (after,) = reader.read(feed, ETag='"a"')
    assert (before.body, after.id) == (_BODY, before.id)
    assert "문단 5" in after.body
    assert reader.cursor["etag"] == '"a"'


def test_a_place_that_is_down_is_not_asked_for_every_page(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    items = [_item(f"{n}", reader.site.url(f"/{n}")) for n in range(12)]
    reader.site.pages["/feed"] = page(_rss(*items))
    problems = _problems(reader.run())
    assert len([path for path, _ in reader.site.requests if path not in {"/feed", "/robots.txt"}]) == 5
    assert (len(problems), len(reader.articles)) == (12, 12)


def test_pages_of_another_kind_do_not_stop_the_others(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    reader.site.pages |= {f"/{n}": page("%PDF", Content_Type="application/pdf") for n in range(6)}
    reader.site.pages["/6"] = page(_PAGE, Content_Type="text/html")
    reader.read(_rss(*(_item(f"{n}", reader.site.url(f"/{n}")) for n in range(7))))
    assert [article.title for article in reader.articles.values() if "문단 5" in article.body] == ["6"]


@pytest.mark.parametrize(
    "rules",
    [
        "User-agent: *\nDisallow: /members/",
        "\ufeffUser-agent: yeoul\r\nDisallow: /\r\nAllow: /free/\r\n\r\nUser-agent: *\r\nAllow: /",
        "User-agent: *\nDisallow: /*?print=",
    ],
)
def test_a_page_that_robots_may_not_read_is_not_read(reader: _Reader, rules: str) -> None:
    reader.options = {"full_text": True}
    kept, free = "/members/1?print=1", "/free/1"
    reader.site.pages |= {path: page(_PAGE, Content_Type="text/html") for path in (kept, free)}
    reader.site.pages["/robots.txt"] = page(rules)
    reader.site.pages["/feed"] = page(_rss(*(_item(path, reader.site.url(path)) for path in (kept, free))))
    (problem,) = _problems(reader.run())
    assert f"robots.txt keeps robots from {reader.site.url(kept)}" in problem
    assert {a.title: "문단 5" in a.body for a in reader.articles.values()} == {kept: False, free: True}
    assert [reader.site.asked(path) for path in (kept, free, "/robots.txt")] == [0, 1, 1]


def test_a_place_of_ours_is_read_whatever_its_robots_txt_says(reader: _Reader) -> None:
    reader.options = {"full_text": True, "ignore_robots": True}
    reader.site.pages |= {
        "/1": page(_PAGE, Content_Type="text/html"),
        "/robots.txt": page("User-agent: *\nDisallow: /"),
    }
    (article,) = reader.read(_rss(_item("금리", reader.site.url("/1"))))
    assert "문단 5" in article.body
    assert reader.site.asked("/robots.txt") == 0


def test_a_page_that_leads_where_robots_may_not_go_is_not_used(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    reader.site.pages |= {
        "/1": page("", 302, Location="/members/1"),
        "/members/1": page(_PAGE, Content_Type="text/html"),
        "/robots.txt": page("User-agent: *\nDisallow: /members/"),
        "/feed": page(_rss(_item("금리", reader.site.url("/1")))),
    }
    (problem,) = _problems(reader.run())
    assert "ignore_robots = true" in problem
    assert [article.body for article in reader.articles.values()] == [_BODY]


@pytest.mark.parametrize(("status", "reads"), [(404, 1), (403, 1), (429, 0), (503, 0)])
def test_where_robots_txt_cannot_be_had_it_depends_on_why(reader: _Reader, status: int, reads: int) -> None:
    """RFC 9309, 2.3.1: one that is not there allows everything, one that cannot be reached nothing."""
    reader.options = {"full_text": True}
    reader.site.pages |= {"/1": page(_PAGE, Content_Type="text/html"), "/robots.txt": page("", status)}
    reader.read(_rss(*(_item(f"금리 {n}", reader.site.url(f"/{n}")) for n in (1, 2))))
    assert (reader.site.asked("/1"), reader.site.asked("/robots.txt")) == (reads, 1)


@pytest.mark.parametrize(
    ("body", "kind", "why"),
    [
        ("%PDF-1.7", "application/pdf", "is 'application/pdf' and no page"),
        ("<html></html>", "text/html", "no main text"),
    ],
)
def test_a_page_without_text_leaves_the_summary(reader: _Reader, body: str, kind: str, why: str) -> None:
    reader.options = {"full_text": True}
    reader.site.pages |= {
        "/feed": page(_rss(_item("금리", reader.site.url("/1")))),
        "/1": page(body, Content_Type=kind),
    }
    assert why in _problems(reader.run())[0]
    assert [article.body for article in reader.articles.values()] == [_BODY]


def test_a_page_that_says_less_than_the_feed_is_not_used(reader: _Reader) -> None:
    reader.options = {"full_text": True}
    reader.site.pages["/1"] = page(
        "<html><body><p>구독하시면 읽을 수 있습니다.</p></body></html>", Content_Type="text/html"
    )
    (article,) = reader.read(_rss(_item("금리", reader.site.url("/1"), body=f"<p>{_BODY * 3}</p>")))
    assert article.body == f"<p>{_BODY * 3}</p>"


def test_a_feed_on_this_machine_has_to_be_allowed(reader: _Reader) -> None:
    reader.options = {"allow_private": False}
    with pytest.raises(SourceUnavailable, match="not on the open internet"):
        reader.read(_rss(_item("하나", f"{_HOME}1")))
    assert reader.site.requests == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "option 'url'"),
        ({"url": 1}, "option 'url' .* is 1"),
        ({"url": "https://a.kr/", "ful_text": True}, "no option 'ful_text'"),
        ({"url": "https://a.kr/", "full_text": "yes"}, "option 'full_text' .* true or false, is 'yes'"),
        ({"url": "https://a.kr/", "allow_private": 1}, "option 'allow_private'"),
        ({"url": "https://a.kr/", "category": "x" * 501}, "option 'category' .* at most 500"),
        ({"url": "https://a.kr/", "max_entries": 0}, "option 'max_entries' .* is 0"),
        ({"url": "file:///etc/passwd"}, "http:// or https://"),
        ({"url": "https://user:secret@a.kr/"}, "user name or a password"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        FeedOptions.from_mapping(options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "a#b", "\x00"])
def test_a_name_that_no_id_can_begin_with_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="'id'"):
        FeedSource(name, FeedOptions(url="https://a.kr/"))


def _parsed(text: str) -> Feed:
    return feed_of(text.encode(), url=f"{_HOME}feed", content_type="application/rss+xml")
