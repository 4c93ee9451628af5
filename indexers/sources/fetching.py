"""One GET of an address that somebody else chose, with every guard: where it may lead, how long, how much.

A feed names the pages that are fetched and a page names where it redirects to, so an address is never trusted: each hop
is checked, and `network` lets no connection into a private network. Knows nothing about feeds or articles.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpcore2
import httpx2

from indexers.sources.network import Clock, GuardedNetwork, Refused, Resolve, resolved
from pipeline.errors import SourceUnavailable, UnreadableSource, shown

USER_AGENT = "Yeoul/0.1 (+feed reader)"
_ACCEPT = (
    "application/atom+xml, application/rss+xml, application/rdf+xml, application/xml;q=0.9, text/html;q=0.8, */*;q=0.5"
)
_ENCODINGS = ("", "identity", "gzip", "deflate")  # one at a time: gzip inside gzip has no use but to fill memory
_SCHEMES = ("http", "https")
_MAX_REDIRECTS = 5  # a moved feed takes one or two
_KEPT_CONNECTIONS = 4  # the pages of a feed's entries lie on one or two hosts
_KEPT_SECONDS = 5.0  # shorter than servers keep them, so that no request meets a connection that is being closed
_MAX_SHOWN_CHARS = 60  # of a header that an error quotes

_HINTS = {
    401: "the place wants a login, which Yeoul cannot give",
    403: "the place refuses this reader: ask its owner",
    404: "check the address: was the page moved?",
    410: "it is gone for good: remove the source, or give its new address",
    429: "ask less often",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much. `read_seconds` is the longest silence; `max_bytes` counts both packed and unpacked."""

    connect_seconds: float = 5.0  # to one address
    read_seconds: float = 10.0
    total_seconds: float = 30.0  # of one `get` with all its redirects; the system's resolver has a limit of its own
    max_bytes: int = 10_000_000  # 10 MB: twice the largest article


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came. `status` 304: not changed since the given etag or time, `content` is empty. `url` is after redirects."""

    status: int
    url: str
    content: bytes = b""
    content_type: str = ""
    etag: str | None = None
    last_modified: str | None = None


class Fetcher:
    """Fetches, keeping connections for a while. For one thread: a `get` at a time.

    `allow_private` lets it reach this machine and the networks around it. `resolve`, `network` and `tls` are the parts
    below: the resolver, what opens connections, and who is trusted (by default the system's certificates).
    """

    def __init__(
        self,
        limits: Limits = Limits(),
        *,
        allow_private: bool = False,
        resolve: Resolve | None = None,
        network: httpcore2.NetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._clock = Clock()
        guarded = GuardedNetwork(
            network or httpcore2.SyncBackend(), resolve or resolved, self._clock, allow_private=allow_private
        )
        pool = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_keepalive_connections=_KEPT_CONNECTIONS,
            keepalive_expiry=_KEPT_SECONDS,
            network_backend=guarded,
        )
        self._client = httpx2.Client(
            transport=_Transport(pool, limits.max_bytes),
            trust_env=False,  # a proxy would resolve the names itself, unchecked
            timeout=httpx2.Timeout(limits.read_seconds, connect=limits.connect_seconds),
            headers={"User-Agent": USER_AGENT, "Accept": _ACCEPT, "Accept-Encoding": "gzip, deflate"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def get(self, url: str, *, etag: str | None = None, last_modified: str | None = None) -> Fetched:
        """What `url` answers, after at most 5 redirects; `etag` and `last_modified` as an earlier answer gave them.

        Raises UnreadableSource for an address that nobody may fetch (no http or https, a password in it), and
        SourceUnavailable for everything that a later try could find mended.
        """
        request = self._client.build_request("GET", checked_address(url), headers=_conditions(etag, last_modified))
        is_conditional = etag is not None or last_modified is not None
        self._clock.start(self._limits.total_seconds)
        for _ in range(_MAX_REDIRECTS + 1):
            place = url if request.url == httpx2.URL(url) else f"{url} (led to {request.url})"
            with self._explained(place):
                response = self._client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        return self._taken(place, response, is_conditional=is_conditional)
                finally:
                    response.close()
                request = _checked_redirect(response.next_request)
        raise SourceUnavailable(
            url, f"more than {_MAX_REDIRECTS} redirects, the last to {request.url}", "give the address where it ends"
        )

    def _taken(self, place: str, response: httpx2.Response, *, is_conditional: bool) -> Fetched:
        if response.status_code != 200 and not (response.status_code == 304 and is_conditional):
            raise _status_error(place, response)
        return Fetched(
            status=response.status_code,
            url=str(response.url),
            content=self._content(response) if response.status_code == 200 else b"",
            content_type=response.headers.get("content-type", ""),
            etag=_returnable(response.headers.get("etag")),
            last_modified=_returnable(response.headers.get("last-modified")),
        )

    def _content(self, response: httpx2.Response) -> bytes:
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise Refused(f"it is packed as {shown(encoding[:_MAX_SHOWN_CHARS])}, asked for was gzip", "tell its owner")
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > self._limits.max_bytes:
                raise _too_large(self._limits.max_bytes)
        return bytes(content)

    @contextmanager
    def _explained(self, place: str) -> Iterator[None]:
        """Turns what the libraries raise into SourceUnavailable."""
        try:
            yield
        except Refused as error:
            raise SourceUnavailable(place, error.why, error.hint) from error
        except httpcore2.TimeoutException as error:
            raise SourceUnavailable(place, self._lateness(error), "the next run tries again") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            if any(isinstance(cause, ssl.SSLError) for cause in error.args):  # httpcore2 drops `__cause__`
                raise SourceUnavailable(
                    place, f"no secure connection: {error}", "its certificate must be valid and trusted by this machine"
                ) from error
            raise SourceUnavailable(place, str(error) or type(error).__name__, "is the address right?") from error

    def _lateness(self, error: httpcore2.TimeoutException) -> str:
        if self._clock.is_over():
            return f"not done after {self._limits.total_seconds:g} s"
        if isinstance(error, httpcore2.ConnectTimeout):
            return f"no connection within {self._limits.connect_seconds:g} s"
        return f"silent for {self._limits.read_seconds:g} s"


def checked_address(url: str) -> httpx2.URL:
    """`url`, if it is one that may be asked for. Raises UnreadableSource, which never shows a password."""
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise UnreadableSource(f"{shown(url)} is no address: {error}", "give one such as https://host/feed") from error
    if address.userinfo:
        raise UnreadableSource(
            f"the address at {address.host} carries a user name or a password",
            "take them out: they would end up in logs; a place behind a login cannot be read",
        )
    if address.scheme not in _SCHEMES or not address.host:
        raise UnreadableSource(f"the address should be http:// or https:// with a host, is {shown(url)}", "correct it")
    return address


class _Transport(httpx2.BaseTransport):
    """httpx2's own transport takes no network of ours; its errors stay httpcore2's."""

    def __init__(self, pool: httpcore2.ConnectionPool, max_bytes: int) -> None:
        self._pool = pool
        self._max_bytes = max_bytes

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        answer = self._pool.handle_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                extensions=request.extensions,
            )
        )
        body = _Body(answer, self._max_bytes)
        return httpx2.Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    """The bytes as they come. Counted before they are unpacked: what follows a packed end never comes out."""

    def __init__(self, answer: httpcore2.Response, max_bytes: int) -> None:
        self._answer = answer
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for part in self._answer.iter_stream():
            read += len(part)
            if read > self._max_bytes:
                raise _too_large(self._max_bytes)
            yield part

    def close(self) -> None:
        self._answer.close()


def _checked_redirect(request: httpx2.Request) -> httpx2.Request:
    try:
        checked_address(str(request.url))
    except UnreadableSource as error:
        raise Refused(f"it redirects where nobody may follow: {error.message}", "tell its owner") from error
    return request


def _conditions(etag: str | None, last_modified: str | None) -> dict[str, str]:
    given = {"If-None-Match": etag, "If-Modified-Since": last_modified}
    return {name: value for name, value in given.items() if value is not None}


def _returnable(value: str | None) -> str | None:
    """A header that can be sent back as it came."""
    return value if value and value.isascii() and value.isprintable() else None


def _too_large(max_bytes: int) -> Refused:
    return Refused(f"it is larger than {max_bytes:,} bytes", "give the address of a smaller page or feed")


def _status_error(place: str, response: httpx2.Response) -> SourceUnavailable:
    status = response.status_code
    why = f"it answers {status} {httpx2.codes.get_reason_phrase(status)}".rstrip()
    wait = response.headers.get("retry-after")
    if wait:
        why += f" and asks to wait (Retry-After: {shown(wait[:_MAX_SHOWN_CHARS])})"
    return SourceUnavailable(place, why, _HINTS.get(status, "the next run tries again"), status=status)
