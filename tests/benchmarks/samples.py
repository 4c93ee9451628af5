"""How well the gate half of the shipped queries is answered, by kind and mode, with the default settings.

    python tests/benchmarks/samples.py

Articles go through the code that indexes them into a resident engine, queries through the searcher. Prints a Markdown table of
mean nDCG@10. The other half is for choosing weights; `tests/test_samples.py` asserts on the figures printed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

import orjson

from pipeline import parts
from pipeline.documents import Article
from pipeline.encoding.encoder import Encoder
from pipeline.evaluation.measures import MAIN, measured
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.passages import AnalysedPassage, encode
from pipeline.retrieval.query import Mode, SearchRequest
from pipeline.retrieval.searcher import Searcher
from pipeline.settings import Settings

MODES = ("hybrid", "lexical", "dense", "rrf")
WORDED = (
    "plain",
    "colloquial",
    "misspelt",
    "unspaced",
)  # queries whose words, or what is left of them, are in the article
REWORDED = ("paraphrase", "indirect")  # queries that share no word with the title of what they ask for
_SHOWN = 10  # articles a search: as deep as nDCG@10 looks
_ALL_WELL: Mapping[str, str] = MappingProxyType({})

Query = Mapping[str, Any]
Values = Mapping[str, Mapping[str, float]]  # mode → query id → nDCG@10


def main() -> None:
    settings = Settings.model_construct()  # the defaults, whatever the environment says
    analyser = Analyser.open(settings.user_words, synonyms=settings.synonyms)
    queries = gate(shipped_queries())
    values = ndcg(shipped_articles(), queries, analyser, parts.encoder_of(settings, analyser))
    print(f"| queries | | {' | '.join(MODES)} |\n|---|---|{'---|' * len(MODES)}")
    for name, kinds in (
        ("all", (*WORDED, *REWORDED)),
        ("all but indirect", (*WORDED, "paraphrase")),
        *((kind, (kind,)) for kind in (*WORDED, *REWORDED)),
        (" and ".join(REWORDED), REWORDED),
    ):
        chosen = [query for query in queries if query["kind"] in kinds]
        print(f"| {name} | {len(chosen)} | {' | '.join(f'{mean(values, mode, chosen):.3f}' for mode in MODES)} |")


def shipped_articles() -> list[Article]:
    return [Article.from_mapping(line) for line in _lines("articles.jsonl")]


def shipped_queries() -> list[Query]:
    """`id`, `text`, `kind`, `relevant` (article id → grade, 1 or 2) and `half` of each."""
    return list(_lines("queries.jsonl"))


def gate(queries: Iterable[Query]) -> list[Query]:
    return [query for query in queries if query["half"] == "gate"]


def ndcg(articles: Iterable[Article], queries: Iterable[Query], analyser: Analyser, encoder: Encoder) -> Values:
    """nDCG@10 of each query in each of `MODES`, with the default settings."""
    queries = list(queries)
    settings = Settings.model_construct()
    opened = parts.PartsHere(settings, analyser, encoder)
    engine = ResidentEngine(encoder.dim, parts.lexical_parameters(settings))
    made = opened.passages.of(list(enumerate(articles, start=1)))
    analysed: list[AnalysedPassage] = [one for passages in made for one in passages]
    engine.add([one.passage for one in analysed], encode(encoder, analysed))
    searcher = Searcher(
        reader=opened.reader,
        encoder=encoder,
        engine=lambda: (engine, _ALL_WELL),
        fusion=parts.fusion_parameters(settings, opened.manifest),
    )
    return {
        "hybrid": _values(searcher, "hybrid", queries),
        "lexical": _values(searcher, "lexical", queries),
        "dense": _values(searcher, "dense", queries),
        "rrf": _values(searcher.with_fusion(method="rrf"), "hybrid", queries),
    }


def mean(values: Values, mode: str, queries: Iterable[Query]) -> float:
    found = [values[mode][query["id"]] for query in queries]
    return sum(found) / len(found)


def _lines(name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in resources.files("pipeline.samples").joinpath(name).read_bytes().splitlines()]


def _values(searcher: Searcher, mode: Mode, queries: Iterable[Query]) -> Mapping[str, float]:
    qrels = {query["id"]: query["relevant"] for query in queries}
    requests = {query["id"]: SearchRequest.checked(query["text"], limit=_SHOWN, mode=mode) for query in queries}
    rankings = {i: [hit.article_id for hit in searcher.search(request).hits] for i, request in requests.items()}
    return measured(qrels, rankings, [MAIN])[MAIN]


if __name__ == "__main__":
    main()
