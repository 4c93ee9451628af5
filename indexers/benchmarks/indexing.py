"""How fast `yeoul index` is beside Kiwi alone on the same text, in one run, and what it holds in memory meanwhile.

Kiwi alone: one batch call over the cleaned titles and bodies on all cores, the model loaded before the clock starts; once
before and once after the rest, the mean of both, for machines whose speed changes. Index: the whole command, its start
included, into an empty folder; then the same command again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexers.benchmarks.memory import watched
from indexers.benchmarks.passages import passages_told
from indexers.benchmarks.report import Bars, Lines, table
from indexers.sources.files import read_articles
from pipeline.cleaning import clean, clean_title
from pipeline.documents import Article
from pipeline.errors import UnreadableSource, YeoulError
from pipeline.korean.morphemes import Analyser


class NotIndexed(YeoulError):
    """`yeoul index` failed."""

    code = "not_indexed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Seconds of each, MB of RSS of `yeoul index` and what it started at its largest; what the command printed each time."""

    articles: int
    characters: int
    passages: int
    kiwi: float
    first: float
    again: float
    first_memory: float
    again_memory: float
    told: tuple[str, str]

    def table(self) -> str:
        """Markdown."""
        first = f"{self.articles:,} articles, {self.characters:,} characters, {self.passages:,} passages"
        headings = [first, "seconds", "characters a second", "passages a second", "of Kiwi's rate", "RSS at most"]
        return table(
            headings,
            [
                ["Kiwi alone", f"{self.kiwi:.1f}", f"{self.characters / self.kiwi:,.0f}", "", "100%", ""],
                [
                    "yeoul index",
                    f"{self.first:.1f}",
                    f"{self.characters / self.first:,.0f}",
                    f"{self.passages / self.first:,.0f}",
                    f"{self.kiwi / self.first:.0%}",
                    f"{self.first_memory:,.0f} MB",
                ],
                ["yeoul index again", f"{self.again:.1f}", "", "", "", f"{self.again_memory:,.0f} MB"],
            ],
        )

    def panels(self) -> list[Lines | Bars]:
        """A picture of the rates."""
        rates = {"Kiwi alone": self.characters / self.kiwi, "yeoul index": self.characters / self.first}
        title = f"indexing {self.articles:,} articles"
        return [Bars(title=title, value="characters a second", bars={"in one run": rates})]


def measured(paths: Sequence[Path], analyser: Analyser, folder: Path, environment: Mapping[str, str]) -> Figures:
    """Indexes the articles of `paths` into the empty `folder`, twice. Raises UnreadableSource, NotIndexed."""
    articles = [item for item in read_articles(list(paths)) if isinstance(item, Article)]
    if not articles:
        raise UnreadableSource(
            f"there are no articles in {', '.join(map(str, paths))}", "give files that yeoul index reads"
        )
    texts = [text for a in articles for text in (clean_title(a.title), clean(a.body, a.format).text)]
    before = _kiwi(analyser, texts)
    first, first_memory, told = _index(paths, folder, environment)
    again, again_memory, told_again = _index(paths, folder, environment)
    return Figures(
        articles=len(articles),
        characters=sum(map(len, texts)),
        passages=passages_told(told),
        kiwi=(before + _kiwi(analyser, texts)) / 2,
        first=first,
        again=again,
        first_memory=first_memory,
        again_memory=again_memory,
        told=(told, told_again),
    )


def _kiwi(analyser: Analyser, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    for _ in analyser.analyse(texts):
        pass
    return time.perf_counter() - start


def _index(paths: Sequence[Path], folder: Path, environment: Mapping[str, str]) -> tuple[float, float, str]:
    """Seconds, MB at most, what it printed."""
    command = [sys.executable, "-m", "yeoul", "index", *(str(path.absolute()) for path in paths)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=subprocess.PIPE, text=True)
    with watched(process.pid) as peak:
        told, _ = process.communicate()
    if process.returncode:
        raise NotIndexed(f"yeoul index ended with {process.returncode} and said {told!r}", "see its lines above")
    return time.perf_counter() - start, peak.rss, told.strip()
