"""Whether a place lets robots read a page: its robots.txt (RFC 9309), asked for once a run."""

from __future__ import annotations

from urllib.parse import urlsplit

from protego import Protego

from indexers.sources.fetching import USER_AGENT, Fetcher
from pipeline.errors import SourceUnavailable

_TOO_MANY = 429


class Robots:
    """The rules of every place that was asked for."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._rules: dict[str, Protego] = {}

    def allow(self, url: str) -> bool:
        """Whether the page at `url`, which is http or https, may be read. A place without robots.txt (4xx) allows everything.

        Raises SourceUnavailable where the place does not say: then nothing may be read.
        """
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.netloc}"
        if place not in self._rules:
            self._rules[place] = Protego.parse(self._text(f"{place}/robots.txt"))
        return bool(self._rules[place].can_fetch(url, USER_AGENT))

    def _text(self, url: str) -> str:
        try:
            return self._fetcher.get(url).content.decode("utf-8-sig", errors="replace")
        except SourceUnavailable as error:
            if error.status is not None and 400 <= error.status < 500 and error.status != _TOO_MANY:
                return ""
            raise
