"""indexers/sources: fetching and network"""

from __future__ import annotations

import gzip
import socket
import ssl
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexers.sources.fetching import Fetcher, Limits
from indexers.sources.network import is_public
from pipeline.errors import SourceUnavailable, UnreadableSource
from tests.faults import until
from tests.web_server import Answer, Handler, Site, missing, page, site_on

_CERTIFICATE = Path(__file__).parent / "data" / "feeds" / "certificate.pem"  # of feeds.test
_PUBLIC = "93.184.216.34"  # never reached: `_Detour` leads every connection to this machine
_SMALL = Limits(read_seconds=30, total_seconds=60, max_bytes=1_000)
_SILENT = replace(_SMALL, read_seconds=0.2)
_SHORT = replace(_SMALL, total_seconds=0.6)
_INTERNAL = (
    "127.0.0.1 127.9.9.9 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1 "
    "255.255.255.255 192.0.2.1 198.18.0.1 192.88.99.1 :: ::1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd12::1 ff02::1 "
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::c0a8:101 64:ff9b:1::a00:1 2002:7f00:1:: "
    "2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 100::1"
).split()


class _Detour(httpcore2.SyncBackend):
    """The internet as far as a test can have it: says where it was led and connects to this machine."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        self.reached.append(host)
        return super().connect_tcp("127.0.0.1", port, timeout, local_address, socket_options)


@pytest.fixture
def site() -> Iterator[Site]:
    with site_on() as opened:
        yield opened


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(_SMALL, allow_private=True) as opened:
        yield opened


def _names(**addresses: str) -> Callable[[str, int], list[str]]:
    """A resolver that knows only these; `_` in a name stands for `.`."""
    known = {name.replace("_", "."): address.split() for name, address in addresses.items()}
    return lambda host, _port: known.get(host, [host])


def _redirect(to: str, status: int = 302) -> Answer:
    return page("moved", status, Location=to)


def test_a_page_comes_with_what_its_headers_say(site: Site, fetcher: Fetcher) -> None:
    site.pages["/"] = page("여울", Content_Type="text/html", ETag='"a"', Last_Modified="Mon, 02 Mar 2026 00:00:00 GMT")
    got = fetcher.get(site.url("/"))
    assert (got.status, got.url, got.content.decode()) == (200, site.url("/"), "여울")
    assert (got.content_type, got.etag, got.last_modified) == ("text/html", '"a"', "Mon, 02 Mar 2026 00:00:00 GMT")
    assert site.requests[0][1]["User-Agent"] == "Yeoul/0.1 (+feed reader)"


def test_what_did_not_change_is_not_sent_again(site: Site, fetcher: Fetcher) -> None:
    site.pages["/"] = page("", 304)
    got = fetcher.get(site.url("/"), etag='"a"', last_modified="Mon, 02 Mar 2026 00:00:00 GMT")
    assert (got.status, got.content) == (304, b"")
    asked = site.requests[0][1]
    assert (asked["If-None-Match"], asked["If-Modified-Since"]) == ('"a"', "Mon, 02 Mar 2026 00:00:00 GMT")


def test_an_unchanged_page_that_nobody_asked_about_is_refused(site: Site, fetcher: Fetcher) -> None:
    site.pages["/"] = page("", 304)
    with pytest.raises(SourceUnavailable, match="it answers 304 Not Modified"):
        fetcher.get(site.url("/"))


def test_an_etag_that_could_not_be_sent_back_is_forgotten(site: Site, fetcher: Fetcher) -> None:
    site.pages["/"] = page("", ETag='"caf\xe9"')
    assert fetcher.get(site.url("/")).etag is None


@pytest.mark.parametrize(
    ("status", "cure"),
    [(404, "check the address"), (410, "remove the source"), (401, "login"), (403, "refuses"), (500, "tries again")],
)
def test_a_bad_status_names_the_address_the_status_and_the_cure(
    site: Site, fetcher: Fetcher, status: int, cure: str
) -> None:
    site.pages["/"] = page("", status)
    with pytest.raises(SourceUnavailable) as caught:
        fetcher.get(site.url("/"))
    assert f"the source {site.url('/')} gives nothing: it answers {status} " in caught.value.message
    assert cure in caught.value.hint


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_is_quoted(site: Site, fetcher: Fetcher, status: int) -> None:
    site.pages["/"] = page("", status, Retry_After="120")
    with pytest.raises(SourceUnavailable, match=r"asks to wait \(Retry-After: '120'\)"):
        fetcher.get(site.url("/"))


def test_a_place_where_nobody_listens_is_unavailable(fetcher: Fetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SourceUnavailable, match="Connection refused"):
        fetcher.get(f"http://127.0.0.1:{port}/")


def test_a_name_that_is_not_found_is_unavailable() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with (
        Fetcher(resolve=unknown) as fetcher,
        pytest.raises(SourceUnavailable, match=r"the name 'feeds\.test' is not found"),
    ):
        fetcher.get("http://feeds.test/")


def test_a_silent_server_is_left_after_the_longest_silence(site: Site) -> None:
    site.pages["/"] = lambda _handler: _wait(site)
    with (
        Fetcher(_SILENT, allow_private=True) as fetcher,
        pytest.raises(SourceUnavailable, match=r"silent for 0\.2 s"),
    ):
        fetcher.get(site.url("/"))


def test_a_dripping_server_is_left_at_the_end_of_the_time(site: Site) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "500")
        handler.end_headers()
        while not site.closing.wait(0.05):
            handler.wfile.write(b".")

    site.pages["/"] = drip
    with (
        Fetcher(_SHORT, allow_private=True) as fetcher,
        pytest.raises(SourceUnavailable, match=r"not done after 0\.6 s"),
    ):
        fetcher.get(site.url("/"))


def test_dripping_headers_are_left_at_the_end_of_the_time(site: Site) -> None:
    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not site.closing.wait(0.05):
            handler.wfile.write(b"X-More: 1\r\n")

    site.pages["/"] = drip
    with (
        Fetcher(_SHORT, allow_private=True) as fetcher,
        pytest.raises(SourceUnavailable, match=r"not done after 0\.6 s"),
    ):
        fetcher.get(site.url("/"))


def test_one_get_that_took_all_its_time_leaves_the_next_its_own(site: Site) -> None:
    site.pages |= {"/slow": lambda _handler: _wait(site), "/": page("ok")}
    with Fetcher(_SHORT, allow_private=True) as fetcher:

        def comes() -> bool:
            try:
                return fetcher.get(site.url("/")).content == b"ok"
            except SourceUnavailable:  # a busy machine may need more than its time
                return False

        with pytest.raises(SourceUnavailable, match=r"not done after 0\.6 s"):
            fetcher.get(site.url("/slow"))
        until(comes, 60, "no page comes any more")


def test_a_body_that_ends_early_is_unavailable(site: Site, fetcher: Fetcher) -> None:
    def half(handler: Handler) -> None:
        handler.reply(200, b"half", {"Content-Length": "8"})
        handler.close_connection = True

    site.pages["/"] = half
    with pytest.raises(SourceUnavailable, match="without sending complete message body"):
        fetcher.get(site.url("/"))


def test_an_answer_that_is_no_http_is_unavailable(site: Site, fetcher: Fetcher) -> None:
    def babble(handler: Handler) -> None:
        handler.wfile.write(b"220 smtp.test ready\r\n\r\n")
        handler.close_connection = True

    site.pages["/"] = babble
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1"):
        fetcher.get(site.url("/"))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_packed_page_is_unpacked(site: Site, fetcher: Fetcher, pack: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    site.pages["/"] = page(pack("여울".encode()), Content_Encoding=encoding)
    assert fetcher.get(site.url("/")).content.decode() == "여울"


def test_a_page_at_the_limit_comes_and_one_byte_more_does_not(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/most": page(b"x" * 1_000), "/more": page(b"x" * 1_001)}
    assert len(fetcher.get(site.url("/most")).content) == 1_000
    with pytest.raises(SourceUnavailable, match="larger than 1,000 bytes"):
        fetcher.get(site.url("/more"))


def test_a_body_without_end_is_cut_off(site: Site, fetcher: Fetcher) -> None:
    def pour(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not site.closing.is_set():
            handler.wfile.write(b"x" * 10_000)

    site.pages["/"] = pour
    with pytest.raises(SourceUnavailable, match="larger than 1,000 bytes"):
        fetcher.get(site.url("/"))


def test_a_small_page_that_unpacks_to_a_large_one_is_cut_off(site: Site) -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    assert len(bomb) < 100_000
    site.pages["/"] = page(bomb, Content_Encoding="gzip")
    with (
        Fetcher(Limits(max_bytes=100_000), allow_private=True) as fetcher,
        pytest.raises(SourceUnavailable, match="larger than 100,000 bytes"),
    ):
        fetcher.get(site.url("/"))


def test_bytes_after_the_end_of_a_packed_page_count(site: Site, fetcher: Fetcher) -> None:
    site.pages["/"] = page(gzip.compress(b"small") + b"x" * 5_000, Content_Encoding="gzip")
    with pytest.raises(SourceUnavailable, match="larger than 1,000 bytes"):
        fetcher.get(site.url("/"))


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress"])
def test_a_packing_that_was_not_asked_for_is_refused(site: Site, fetcher: Fetcher, encoding: str) -> None:
    site.pages["/"] = page(b"?", Content_Encoding=encoding)
    with pytest.raises(SourceUnavailable, match=f"packed as '{encoding}'"):
        fetcher.get(site.url("/"))


def test_what_says_it_is_packed_and_is_not_is_unavailable(site: Site, fetcher: Fetcher) -> None:
    site.pages["/"] = page(b"plain", Content_Encoding="gzip")
    with pytest.raises(SourceUnavailable, match="incorrect header check"):
        fetcher.get(site.url("/"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_with_its_conditions(site: Site, fetcher: Fetcher, status: int) -> None:
    site.pages |= {"/old": _redirect("/new", status), "/new": page("here")}
    got = fetcher.get(site.url("/old"), etag='"a"')
    assert (got.url, got.content) == (site.url("/new"), b"here")
    assert [headers["If-None-Match"] for _, headers in site.requests] == ['"a"', '"a"']


def test_five_redirects_are_followed_and_six_are_not(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {f"/{n}": _redirect(f"/{n + 1}") for n in range(6)} | {"/6": page("end")}
    assert fetcher.get(site.url("/1")).content == b"end"
    with pytest.raises(SourceUnavailable, match=r"more than 5 redirects, the last to .*/6"):
        fetcher.get(site.url("/0"))


def test_a_redirect_loop_ends(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/a": _redirect("/b"), "/b": _redirect("/a")}
    with pytest.raises(SourceUnavailable, match="more than 5 redirects"):
        fetcher.get(site.url("/a"))
    assert len(site.requests) == 6


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/"])
def test_a_redirect_is_checked_like_the_address_itself(site: Site, fetcher: Fetcher, to: str) -> None:
    site.pages["/"] = _redirect(to)
    with pytest.raises(SourceUnavailable, match="redirects where nobody may follow"):
        fetcher.get(site.url("/"))
    assert len(site.requests) == 1


def test_a_redirect_with_a_password_is_refused_without_showing_it(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/": _redirect(site.url("/in").replace("://", "://user:secret@")), "/in": page("inside")}
    with pytest.raises(SourceUnavailable, match="a user name or a password") as caught:
        fetcher.get(site.url("/"))
    assert "secret" not in str(caught.value)


def test_an_error_behind_a_redirect_names_both_addresses(site: Site, fetcher: Fetcher) -> None:
    site.pages |= {"/old": _redirect("/gone"), "/gone": missing}
    with pytest.raises(SourceUnavailable) as caught:
        fetcher.get(site.url("/old"))
    assert f"{site.url('/old')} (led to {site.url('/gone')})" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "/feed", "host/feed", "http://", "https:///feed"]
)
def test_only_web_addresses_are_fetched(fetcher: Fetcher, url: str) -> None:
    with pytest.raises(UnreadableSource, match="should be http:// or https://"):
        fetcher.get(url)


@pytest.mark.parametrize("url", ["http://[::1/", "http://host:port/", "http://host/\x00"])
def test_what_is_no_address_is_refused_by_name(fetcher: Fetcher, url: str) -> None:
    with pytest.raises(UnreadableSource, match="is no address"):
        fetcher.get(url)


def test_a_password_in_the_address_is_refused_without_showing_it(fetcher: Fetcher) -> None:
    with pytest.raises(UnreadableSource, match=r"the address at feeds\.test carries") as caught:
        fetcher.get("https://user:secret@feeds.test/rss")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", _INTERNAL)
def test_an_address_of_the_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "101.0.0.1"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_as_public_as_its_ipv6_forms(number: int) -> None:
    plain = is_public(str(IPv4Address(number)))
    assert plain == is_public(str(IPv6Address((0xFFFF << 32) | number)))
    assert plain == is_public(str(IPv6Address(int(ip_network("64:ff9b::/96").network_address) | number)))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:7f00:1]"])
def test_this_machine_is_refused_in_every_spelling(site: Site, host: str) -> None:
    site.pages["/"] = page("inside")
    with Fetcher(_SMALL) as fetcher, pytest.raises(SourceUnavailable, match="not on the open internet") as caught:
        fetcher.get(site.url("/", host))
    assert "allow_private" in caught.value.hint
    assert site.requests == []


def test_a_name_with_one_inner_address_is_refused(site: Site) -> None:
    network = _Detour()
    with (
        Fetcher(_SMALL, resolve=_names(feeds_test=f"{_PUBLIC} 10.0.0.1"), network=network) as fetcher,
        pytest.raises(SourceUnavailable, match=r"feeds\.test is 10\.0\.0\.1"),
    ):
        fetcher.get(site.url("/", "feeds.test"))
    assert network.reached == []


def test_a_redirect_from_the_internet_to_the_inside_is_refused(site: Site) -> None:
    site.pages |= {"/": _redirect(site.url("/inside")), "/inside": page("inside")}
    with (
        Fetcher(_SMALL, resolve=_names(feeds_test=_PUBLIC), network=_Detour()) as fetcher,
        pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1, which is not on the open internet"),
    ):
        fetcher.get(site.url("/", "feeds.test"))
    assert [path for path, _ in site.requests] == ["/"]


def test_the_connection_goes_to_the_address_that_was_checked(site: Site) -> None:
    """A name that changes between check and connection (DNS rebinding) gains nothing: it is resolved once."""
    answers = iter([[_PUBLIC], ["127.0.0.1"]])
    network = _Detour()
    site.pages["/"] = page("ok")
    with Fetcher(_SMALL, resolve=lambda _host, _port: next(answers), network=network) as fetcher:
        assert fetcher.get(site.url("/", "feeds.test")).content == b"ok"
    assert network.reached == [_PUBLIC]
    assert site.requests[0][1]["Host"] == f"feeds.test:{site.port}"


def test_the_second_address_is_tried_where_the_first_does_not_listen(site: Site) -> None:
    site.pages["/"] = page("ok")
    with Fetcher(_SMALL, resolve=_names(feeds_test="127.0.0.2 127.0.0.1"), allow_private=True) as fetcher:
        assert fetcher.get(site.url("/", "feeds.test")).content == b"ok"


def test_proxies_of_the_environment_are_ignored(site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9/")
    site.pages["/"] = page("ok")
    with Fetcher(_SMALL, allow_private=True) as made_now:
        assert made_now.get(site.url("/")).content == fetcher.get(site.url("/")).content == b"ok"


@pytest.fixture
def secure_site() -> Iterator[Site]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(_CERTIFICATE)
    with site_on(tls) as opened:
        opened.pages["/"] = page("safe")
        yield opened


def _trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(_CERTIFICATE))


def test_tls_verifies_the_name_though_the_connection_goes_to_an_address(secure_site: Site) -> None:
    names = _names(feeds_test=_PUBLIC, other_test=_PUBLIC)
    with Fetcher(resolve=names, network=_Detour(), tls=_trusting()) as fetcher:
        assert fetcher.get(secure_site.url("/", "feeds.test")).content == b"safe"
        with pytest.raises(SourceUnavailable, match="Hostname mismatch") as caught:
            fetcher.get(secure_site.url("/", "other.test"))
    assert "certificate" in caught.value.hint


def test_a_certificate_that_nobody_trusts_is_refused(secure_site: Site) -> None:
    with (
        Fetcher(resolve=_names(feeds_test=_PUBLIC), network=_Detour()) as fetcher,
        pytest.raises(SourceUnavailable, match=r"no secure connection.*self-signed"),
    ):
        fetcher.get(secure_site.url("/", "feeds.test"))
    assert secure_site.requests == []


def test_a_server_without_tls_is_no_secure_place(site: Site, fetcher: Fetcher) -> None:
    with pytest.raises(SourceUnavailable, match="no secure connection"):
        fetcher.get(site.url("/").replace("http:", "https:"))


def test_a_handshake_that_does_not_come_ends_with_the_time_to_connect(site: Site) -> None:
    limits = Limits(connect_seconds=0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Fetcher(limits, allow_private=True) as fetcher,
        pytest.raises(SourceUnavailable, match=r"no connection within 0\.2 s"),
    ):
        fetcher.get(f"https://127.0.0.1:{silent.getsockname()[1]}/")


def _wait(site: Site) -> None:
    site.closing.wait(10)
