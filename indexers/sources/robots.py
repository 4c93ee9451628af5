"""Whether a place lets robots read a page: its robots.txt (RFC 9309), asked for once a run."""

from __future__ import annotations

from urllib.parse import urlsplit

from protego import Protego

from indexers.sources.fetching import USER_AGENT, Fetcher
from pipeline.errors import SourceUnavailable

_TOO_MANY = 429


class Robots:
    """The rules of every place that was asked for, and of those that did not say."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._rules: dict[str, Protego | SourceUnavailable] = {}

    def allow(self, url: str) -> bool:
        """Whether the page at `url`, which is http or https, may be read. A place without robots.txt (4xx) allows everything.

        Raises SourceUnavailable where the place does not say: then nothing may be read.
        """
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.netloc}"
        if place not in self._rules:
            self._rules[place] = self._asked(f"{place}/robots.txt")
        rules = self._rules[place]
        if isinstance(rules, SourceUnavailable):
            raise rules
        return bool(rules.can_fetch(url, USER_AGENT))

    def _asked(self, url: str) -> Protego | SourceUnavailable:
        try:
            text = self._fetcher.get(url).content.decode("utf-8-sig", errors="replace")
        except SourceUnavailable as error:
            if error.status is None or not 400 <= error.status < 500 or error.status == _TOO_MANY:
                return error
            text = ""
        return Protego.parse(text)
