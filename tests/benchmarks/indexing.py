"""How fast `yeoul index` is beside Kiwi alone on the same text, in one run.

    python tests/benchmarks/indexing.py ARTICLES.jsonl.gz

Kiwi alone: one batch call over the cleaned titles and bodies on all cores, the model loaded before the clock starts; once
before and once after the rest, the mean of both, for machines whose speed changes. Index: the whole command, its start
included, into an empty folder; then the same command again. Prints a Markdown table.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from indexers.sources.files import read_articles
from pipeline.cleaning import clean, clean_title
from pipeline.documents import Article
from pipeline.korean.morphemes import Analyser


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    articles = [item for item in read_articles([path]) if isinstance(item, Article)]
    texts = [text for a in articles for text in (clean_title(a.title), clean(a.body, a.format).text)]
    characters = sum(map(len, texts))
    analyser = Analyser.open()
    before = _kiwi(analyser, texts)
    with tempfile.TemporaryDirectory() as folder:
        first, told = _index(path, folder)
        second, told_again = _index(path, folder)
    kiwi = (before + _kiwi(analyser, texts)) / 2
    print(f"| {len(articles):,} articles, {characters:,} characters | seconds | characters a second | of Kiwi's rate |")
    print("|---|---|---|---|")
    print(f"| Kiwi alone | {kiwi:.1f} | {characters / kiwi:,.0f} | 100% |")
    print(f"| yeoul index | {first:.1f} | {characters / first:,.0f} | {kiwi / first:.0%} |")
    print(f"| yeoul index again | {second:.1f} | | |")
    print(f"\n{told}\n{told_again}")


def _kiwi(analyser: Analyser, texts: list[str]) -> float:
    start = time.perf_counter()
    for _ in analyser.analyse(texts):
        pass
    return time.perf_counter() - start


def _index(path: Path, folder: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(
        [Path(sys.executable).parent / "yeoul", "index", path], cwd=folder, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - start, done.stdout.strip()


if __name__ == "__main__":
    main()
